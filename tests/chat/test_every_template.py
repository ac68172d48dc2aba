"""What holds with the chat template of every model that llama.cpp knows: what was asked is done, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import every_template
import pytest
import tiny_vocab

from moebind import ChatPrompt, ChatTemplateError, GrammarError, Model, ModelParams
from moebind.chat.demanded_calls import allows_text_before
from moebind.chat.grammar import grammar_sampler

HELLO = [{"role": "user", "content": "Hello"}]
ARGUMENTS = {"where": "Rome", "n": 12}
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}


def tool(name: str) -> dict[str, object]:
    properties = {"where": {"type": "string"}, "n": {"type": "integer"}}
    parameters = {"type": "object", "properties": properties, "required": ["where"]}
    return {"type": "function", "function": {"name": name, "description": "It looks.", "parameters": parameters}}


TOOLS = [tool("look_up"), tool("listen")]

#: In these llama.cpp finds no form of a call.
NO_CALLS = {
    "HuggingFaceTB-SmolLM3-3B",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "google-gemma-2-2b-it",
    "google-translategemma-4b-it",
    "ibm-granite-granite-3.3-2B-Instruct",
    "llama-cpp-rwkv-world",
    "microsoft-Phi-3.5-mini-instruct",
}
#: A call in the history is not what llama.cpp reads: the template leaves it out, writes more behind it, or gives it an
#: id that llama.cpp takes for a part of the form.
UNREAD = {
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "LFM2-8B-A1B",
    "LFM2.5-Instruct",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "upstage-Solar-Open-100B",
}
#: With these a schema is refused: replies begin with reasoning, or with a header.
NO_SCHEMA = {"Kimi-K3"}
#: With these a reply may be held to a schema and the tools at once.
BOTH = {"Cohere2MoE"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tiny_vocab.write(tmp_path_factory.mktemp("every") / "chat.gguf", tiny_vocab.bpe("gpt-2"))
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        yield model


def failures(check: Callable[[str], object], but: Collection[str] = ()) -> dict[str, str]:
    """What a check says of each template, but for some, by name."""
    found: dict[str, str] = {}
    for name, template in every_template.templates().items():
        if name not in but:
            try:
                check(template)
            except (AssertionError, ChatTemplateError, GrammarError) as error:
                found[name] = f"{type(error).__name__}: {error}"
    return found


class Grammar:
    """The grammar of a prompt."""

    def __init__(self, model: Model, prompt: ChatPrompt) -> None:
        sampler = grammar_sampler(model, prompt, frozenset())
        assert sampler is not None
        self.model, self.sampler = model, sampler

    def accepts(self, reply: str) -> bool:
        """Whether it lets a model write this whole reply."""
        self.sampler.reset()
        tokens = self.model.str_to_token(reply, add_special=False, parse_special=False)
        return all(map(self.sampler.try_accept, tokens.tolist())) and self.sampler.try_accept(self.model.token_eos)


def begin_alike(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def replies(model: Model, prompt: ChatPrompt, template: str) -> Iterator[str]:
    """What a reply that calls a tool may look like: as the template writes it into the history, without its end."""
    call = {"id": "abc123DEF", "type": "function", "function": {"name": "look_up", "arguments": ARGUMENTS}}
    for more in ({}, {"reasoning_content": "Because."}):
        chat = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call], **more}]
        try:
            text = model.apply_chat_template(chat, template=template, tools=TOOLS, add_generation_prompt=False)
        except ChatTemplateError:
            continue
        start = begin_alike(text, prompt.prompt)
        whole = start == len(prompt.prompt)
        if not whole and text.rfind("<", 0, start) > text.rfind(">", 0, start):
            start = text.rfind("<", 0, start)  # not in the middle of a tag
        text = text[start:]
        for end in [len(text), *(found.end() for found in reversed(list(re.finditer(r"[>\])}]", text))))][:12]:
            yield text[:end]
            for tag in () if whole else prompt.thinking_end_tags:
                yield f"Because.{tag}\n{text[:end]}"
                yield f"Because.{tag}{text[:end].partition(tag)[2]}"


def is_the_call(prompt: ChatPrompt, reply: str) -> bool:
    try:
        calls = [each["function"] for each in prompt.parse(reply)["tool_calls"]]
        return [(each["name"], json.loads(each["arguments"])) for each in calls] == [("look_up", ARGUMENTS)]
    except (ChatTemplateError, json.JSONDecodeError):
        return False


def calls(model: Model, prompt: ChatPrompt, template: str) -> list[str]:
    return [reply for reply in replies(model, prompt, template) if is_the_call(prompt, reply)]


def around(prompt: ChatPrompt, text: str) -> Iterator[str]:
    """What a reply may write around JSON."""
    forms = ["{}", "```json\n{}\n```", "all\n{}", "<|channel|>final<|message|>{}", "<|message|>{}"]
    forms += ["<response>{}</response>", "<|START_RESPONSE|>{}<|END_RESPONSE|>", "<|START_TEXT|>{}<|END_TEXT|>"]
    for form in forms:
        inner = form.replace("{}", text)
        yield inner
        for tag in prompt.thinking_end_tags:
            yield f"Because.{tag}{inner}"
            yield f"Because.{tag}\n\n{inner}"
            yield f"{prompt.thinking_start_tag}Because.{tag}{inner}"


def test_messages_are_rendered(model: Model) -> None:
    def check(template: str) -> None:
        chat = [*HELLO, {"role": "assistant", "content": "Good day."}, {"role": "user", "content": "48.8566969?"}]
        text = model.apply_chat_template(chat, template=template)
        assert "Hello" in text
        assert "Good day." in text
        assert "48.8566969?" in text

    assert failures(check) == {}


def test_a_call_comes_back_from_the_history(model: Model) -> None:
    def check(template: str) -> None:
        prompt = model.chat_format(HELLO, template=template, tools=TOOLS)
        assert prompt.reads_calls
        assert calls(model, prompt, template)

    assert failures(check, NO_CALLS).keys() == UNREAD


def test_a_call_that_is_demanded_comes(model: Model) -> None:
    def check(template: str) -> None:
        prompt = model.chat_format(HELLO, template=template, tools=TOOLS, tool_choice="required")
        grammar = Grammar(model, prompt)
        if grammar.accepts("Hello") or grammar.accepts(""):
            raise ValueError("a reply without a call is allowed")
        if allows_text_before(prompt):
            raise ValueError("a reply may write text before the call")
        tried = calls(model, prompt, template)
        assert any(map(grammar.accepts, tried))
        named = {"type": "function", "function": {"name": "look_up"}}
        prompt = model.chat_format(HELLO, template=template, tools=TOOLS, tool_choice=named)
        assert prompt.prompt == model.apply_chat_template(HELLO, template=template, tools=TOOLS)
        grammar = Grammar(model, prompt)
        assert any(map(grammar.accepts, tried))
        assert not any(grammar.accepts(reply.replace("look_up", "listen")) for reply in tried)

    assert failures(check, NO_CALLS).keys() == UNREAD
    refused = failures(lambda each: model.chat_format(HELLO, template=each, tools=TOOLS, tool_choice="required"))
    assert refused.keys() == NO_CALLS
    assert all("a call would not be enforced" in message for message in refused.values())


@pytest.mark.parametrize(
    ("schema", "tools"),
    [
        (CITY, None),
        (CITY, TOOLS),
        ({"type": "string", "maxLength": 5}, None),
    ],
)
def test_a_schema_is_held_to(model: Model, schema: dict[str, object], tools: list[dict[str, object]] | None) -> None:
    good, bad = ('{"city": "Rome"}', '{"city": "Oslo"}')
    if schema.get("type") == "string":
        good, bad = '"Paris"', '"Marseille"'

    def check(template: str) -> None:
        prompt = model.chat_format(HELLO, template=template, json_schema=schema, tools=tools, tool_choice="none")
        if tools:
            told = model.apply_chat_template(HELLO, template=template, tools=tools)
            assert ("look_up" in prompt.prompt) == ("look_up" in told)
        grammar = Grammar(model, prompt)
        tried = [reply for reply in around(prompt, good) if grammar.accepts(reply)]
        assert any(prompt.parse(reply)["content"].strip() == good for reply in tried), tried
        for reply in (*around(prompt, bad), *around(prompt, "Hello"), ""):
            assert not grammar.accepts(reply), reply

    assert failures(check, NO_SCHEMA) == {}
    refused = failures(lambda each: model.chat_format(HELLO, template=each, json_schema=schema))
    assert refused.keys() == NO_SCHEMA
    assert all("the JSON schema would not be enforced" in message for message in refused.values())


def test_a_schema_beside_tools_is_held_to_or_refused(model: Model) -> None:
    def check(template: str) -> None:
        prompt = model.chat_format(HELLO, template=template, json_schema=CITY, tools=TOOLS)
        grammar = Grammar(model, prompt)
        assert any(map(grammar.accepts, around(prompt, '{"city": "Rome"}')))
        assert not any(map(grammar.accepts, around(prompt, "Hello")))
        assert any(map(grammar.accepts, calls(model, prompt, template)))

    found = failures(check)
    assert found.keys() == every_template.templates().keys() - BOTH
    assert all("holds a reply to the JSON schema or to the tools, not to both" in message for message in found.values())
    with pytest.raises(ValueError, match="has no content to hold to json_schema"):
        model.chat_format(HELLO, template="chatml", json_schema=CITY, tools=TOOLS, tool_choice="required")


@pytest.mark.parametrize(
    ("choice", "error", "told"),
    [
        ("sometimes", ValueError, "it takes 'auto', 'none', 'required' or"),
        (3, TypeError, "it takes 'auto'"),
        ({"type": "function"}, TypeError, r"tool_choice\['function'\]"),
        ({"type": "function", "function": {"name": "sing"}}, ValueError, "'sing', which is not .*: look_up, listen"),
    ],
)
def test_choices_that_are_none(model: Model, choice: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        model.chat_format(HELLO, template="chatml", tools=TOOLS, tool_choice=choice)


def test_a_demand_without_tools(model: Model) -> None:
    with pytest.raises(ValueError, match="tool_choice demands a call, but there are no tools"):
        model.chat_format(HELLO, template="chatml", tool_choice="required")
