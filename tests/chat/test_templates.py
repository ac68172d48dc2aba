"""Chat templates, and reading replies."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

import moebind
from moebind import ChatPrompt, ChatTemplateError, Model, ModelParams

HERE = Path(__file__).parents[1]
VOCAB_ONLY = ModelParams(n_gpu_layers=0, vocab_only=True)
#: A template in the manner of many models: reasoning in <think>, calls in <tool_call>.
TEMPLATE = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HELLO = [{"role": "user", "content": "Hello"}]
REPLY = (
    "<think>\nThey ask for the weather.\n</think>\n\nLet me see."
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model with a default template, one for tools and one with another name."""
    path = tmp_path_factory.mktemp("chat") / "chat.gguf"
    templates = {
        "tokenizer.chat_template": TEMPLATE,
        "tokenizer.chat_template.tool_use": TEMPLATE.replace("# Tools", "# Only for tools"),
        "tokenizer.chat_template.short": "{{ messages[0].content }}!",
    }
    tiny_vocab.write(path, tiny_vocab.bpe("gpt-2"), **templates)
    with Model.load_from_file(path, VOCAB_ONLY) as model:
        yield model


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model without a template."""
    path = tiny_vocab.write(tmp_path_factory.mktemp("chat") / "bare.gguf", tiny_vocab.bpe("gpt-2"))
    with Model.load_from_file(path, VOCAB_ONLY) as model:
        yield model


# --- rendering ---


def test_a_chat_is_rendered(model: Model) -> None:
    chat = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hi"}]
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert model.apply_chat_template(chat[:2]) == text
    assert model.apply_chat_template(chat, add_generation_prompt=False) == text + "Hi<|im_end|>\n"


def test_the_real_template_of_the_demo_model(demo: Model) -> None:
    text = demo.apply_chat_template(HELLO)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_arguments_reach_the_template(model: Model) -> None:
    assert model.apply_chat_template(HELLO, enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    assert model.apply_chat_template(HELLO, enable_thinking=True).endswith("assistant\n")
    template = "{{ a.b[1] }}|{{ text }}|{{ number }}|{{ nothing is none }}|{{ yes }}"
    arguments: dict[str, Any] = {"a": {"b": (1, 2)}, "text": "ü\0'", "number": 1.5, "nothing": None, "yes": True}
    assert model.apply_chat_template(HELLO, template=template, **arguments) == "2|ü\0'|1.5|True|True"


def test_tools_are_rendered(model: Model) -> None:
    text = model.apply_chat_template(HELLO, tools=[WEATHER])
    assert json.dumps(WEATHER) in text
    assert "Only for tools" in text, "the template that the file has for tools was not used"
    assert "weather" not in model.apply_chat_template(HELLO, tools=[])


def test_calls_and_their_results_are_rendered(model: Model) -> None:
    chat = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
                {"function": {"name": "weather", "arguments": {"city": "Oslo"}}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "sunny"}]},
    ]
    text = model.apply_chat_template(chat, tools=[WEATHER])
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>' in text
    assert '{"city": "Oslo"}' in text
    assert "<tool_response>\nsunny\n</tool_response>" in text


def test_parts_of_a_message_are_joined(model: Model) -> None:
    parts = [("text", "Look:"), ("media_marker", "<__media__>"), ("text", "What is it?"), ("text", "Say.")]
    chat = [{"role": "user", "content": [{"type": kind, "text": text} for kind, text in parts]}]
    text = model.apply_chat_template(chat, template="{{ messages[0].content }}")
    assert text == "Look:<__media__>What is it?\nSay."


def test_bytes_that_a_template_tears_out_of_a_character_are_replaced(model: Model) -> None:
    assert model.apply_chat_template(HELLO, template="{{ 'é'[0] }}{{ 'é' }}") == "\ufffdé"


def test_templates_have_names(model: Model, bare: Model) -> None:
    assert set(model.chat_template_names) == {"default", "tool_use", "short"}
    assert model.chat_template() == model.chat_template("default") == TEMPLATE
    assert model.chat_template("short") == "{{ messages[0].content }}!"
    assert model.apply_chat_template(HELLO, template="short") == "Hello!"
    assert model.apply_chat_template(HELLO, template="default") == model.apply_chat_template(HELLO)
    with pytest.raises(ChatTemplateError, match=r"no chat template named 'long': it has default"):
        model.apply_chat_template(HELLO, template="long")
    assert bare.chat_template_names == ()
    with pytest.raises(ChatTemplateError, match="give one, as Jinja source or 'chatml'"):
        bare.apply_chat_template(HELLO)
    chatml = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert bare.apply_chat_template(HELLO, template="chatml") == chatml


def test_templates_of_llama_cpps_own(bare: Model) -> None:
    names = moebind.chat_builtin_templates()
    assert {"llama3", "chatml", "gemma"} <= set(names)
    for name in names:
        assert "Hello" in bare.apply_chat_template(HELLO, template=name)
    text = bare.apply_chat_template(HELLO, template="llama3")
    assert "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>" in text
    assert bare.parse_chat_response("<think>Hi", template="llama3")["content"] == "<think>Hi"
    with pytest.raises(ChatTemplateError, match="does not know tools"):
        bare.apply_chat_template(HELLO, template="llama3", tools=[WEATHER])
    with pytest.raises(ValueError, match="NUL"):
        bare.apply_chat_template([{"role": "user", "content": "a\0b"}], template="llama3")


def test_templates_that_do_nothing(model: Model) -> None:
    assert model.apply_chat_template(HELLO, template="{# nothing #}") == ""
    assert model.apply_chat_template(HELLO, template="Text{# and nothing #}") == "Text"


def test_many_templates_in_turn(model: Model) -> None:
    for turn in range(3):
        for number in range(12):
            text = model.apply_chat_template(HELLO, template=f"{{{{ messages[0].role }}}}{number}")
            assert text == f"user{number}", turn


def test_the_last_message_can_be_continued(model: Model) -> None:
    chat = [*HELLO, {"role": "assistant", "content": "Hi, I am"}]
    text = model.apply_chat_template(chat, continue_final_message=True)
    assert text.endswith("Hi, I am")
    assert "Hello" in text


def test_threads_share_a_model(model: Model) -> None:
    expected = model.apply_chat_template(HELLO, tools=[WEATHER])
    texts: list[str] = []

    def render() -> None:
        texts.extend(model.apply_chat_template(HELLO, tools=[WEATHER]) for _ in range(5))

    threads = [threading.Thread(target=render) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected] * 20


@given(
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text()}),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_is_rendered_as_it_is(model: Model, chat: list[dict[str, str]]) -> None:
    text = model.apply_chat_template(chat, add_generation_prompt=False)
    expected = "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in chat)
    assert text == expected


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # What the engine writes as JSON it leaves as it is; Python's json reads it again.
    | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_json_can_be_an_argument(model: Model, value: object) -> None:
    text = model.apply_chat_template(HELLO, template="{{ messages[0].content }} {{ value is defined }}", value=value)
    assert text == "Hello True"


# --- replies ---


def test_replies_are_read(model: Model) -> None:
    message = model.parse_chat_response(REPLY, tools=[WEATHER])
    call = message["tool_calls"][0]  # type: ignore[index]
    assert (message["role"], message["content"]) == ("assistant", "Let me see.")
    assert str(message["reasoning_content"]).strip() == "They ask for the weather."
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert call["type"] == "function"
    assert len(call["id"]) == 9
    assert model.parse_chat_response("Hi") == {
        "role": "assistant",
        "content": "Hi",
        "reasoning_content": "",
        "tool_calls": [],
    }
    assert model.parse_chat_response(REPLY, reasoning_format="none")["reasoning_content"] == ""


def test_what_was_read_can_be_rendered_again(model: Model) -> None:
    message = model.parse_chat_response(REPLY, tools=[WEATHER])
    text = model.apply_chat_template([*HELLO, message], tools=[WEATHER], add_generation_prompt=False)
    assert REPLY.split("<tool_call>")[1] in text
    assert "They ask for the weather." in text


def test_a_rendered_chat_tells_of_its_replies(model: Model) -> None:
    prompt = model.chat_format(HELLO, tools=[WEATHER])
    assert prompt.prompt == model.apply_chat_template(HELLO, tools=[WEATHER])
    assert prompt.prompt.endswith(prompt.generation_prompt)
    assert prompt.supports_thinking
    assert (prompt.thinking_start_tag, prompt.thinking_end_tags) == ("<think>", ("</think>",))
    assert prompt.grammar_lazy
    assert "root ::=" in prompt.grammar
    assert [trigger.type for trigger in prompt.triggers] == ["word"]
    assert "<tool_call>" in prompt.triggers[0].value
    assert "<tool_call>" in prompt.preserved_tokens
    demanded = model.chat_format(HELLO, tools=[WEATHER], tool_choice="required")
    assert demanded.grammar
    assert not demanded.grammar_lazy
    assert not demanded.triggers
    assert model.chat_format(HELLO).grammar == ""
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompt.prompt = ""  # type: ignore[misc]


def test_a_schema_makes_a_grammar(model: Model) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    prompt = model.chat_format(HELLO, json_schema=schema)
    assert "root ::=" in prompt.grammar
    assert not prompt.grammar_lazy
    assert model.chat_format(HELLO, json_schema=json.dumps(schema)).grammar == prompt.grammar


def test_unfinished_replies_grow(model: Model) -> None:
    prompt = model.chat_format(HELLO, tools=[WEATHER])
    whole = prompt.parse(REPLY)
    reasoning, content, calls = "", "", 0
    for end in range(len(REPLY) + 1):
        message: Any = prompt.parse(REPLY[:end], partial=True)
        assert message["reasoning_content"].startswith(reasoning)
        assert message["content"].startswith(content)
        assert len(message["tool_calls"]) >= calls
        reasoning, content, calls = message["reasoning_content"], message["content"], len(message["tool_calls"])
        for call, last in zip(message["tool_calls"], whole["tool_calls"], strict=False):  # type: ignore[call-overload]
            assert call["id"] == last["id"]
            assert last["function"]["arguments"].startswith(call["function"]["arguments"])
    assert prompt.parse(REPLY, partial=True) == whole


def test_a_reply_that_is_not_of_the_template(model: Model) -> None:
    reply = '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>'
    with pytest.raises(ChatTemplateError, match="does not match"):
        model.parse_chat_response(reply, tools=[WEATHER])


TAGS = st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "weather", ', '"arguments": '])


@settings(deadline=None)
@given(st.lists(TAGS | st.text(max_size=4) | st.sampled_from(["{", "}", "[", '"', "\n", "\\"]), max_size=12))
def test_no_reply_does_more_than_fail(tool_prompt: ChatPrompt, parts: list[str]) -> None:
    text = "".join(parts)
    for partial in (True, False):
        try:
            message = tool_prompt.parse(text, partial=partial)
        except ChatTemplateError:
            continue
        assert isinstance(message["content"], str)
        assert isinstance(message["tool_calls"], list)


@pytest.fixture(scope="module")
def tool_prompt(model: Model) -> ChatPrompt:
    return model.chat_format(HELLO, tools=[WEATHER])


def test_replies_nested_too_deeply(tool_prompt: ChatPrompt) -> None:
    start = '<tool_call>\n{"name": "weather", "arguments": {"city": '
    assert tool_prompt.parse(start + "[" * 5000, partial=True)["tool_calls"]
    with pytest.raises(ChatTemplateError, match="nested 20002 deep"):
        tool_prompt.parse(start + "[" * 20_000, partial=True)


# --- templates that are not there ---


def test_chat_template_that_is_not_there(moe: Model) -> None:
    with pytest.raises(moebind.ChatTemplateError, match="no chat template"):
        moe.chat_template()
    with pytest.raises(moebind.ChatTemplateError, match="tool_use"):
        moe.chat_template("tool_use")
