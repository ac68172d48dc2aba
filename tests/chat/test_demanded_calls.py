"""Grammars that demand a call: nothing comes before it but reasoning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import every_template
import pytest
import tiny_vocab

from moebind import ChatPrompt, Model, ModelParams
from moebind.chat.demanded_calls import allows_text_before, with_the_call_first
from moebind.chat.grammar import grammar_sampler, schema_warnings

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
RULES = 'until-1 ::= | [<] until-1-01 | [^<] until-1\nuntil-1-01 ::= | [^c] until-1\ntool-call ::= "<call>"'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tiny_vocab.write(tmp_path_factory.mktemp("demanded") / "chat.gguf", tiny_vocab.bpe("gpt-2"))
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        yield model


@pytest.fixture(scope="module")
def prompt(model: Model) -> ChatPrompt:
    return model.chat_format(HELLO, template="chatml")


@pytest.mark.parametrize(
    ("root", "written"),
    [
        ("until-1? tool-call", "SPACE tool-call"),
        ("space until-1 space tool-call until-1?", "space SPACE space tool-call SPACE"),
        ('("<think>" until-1 "</think>")? until-1? tool-call', '("<think>" until-1 "</think>")? SPACE tool-call'),
        # A tag may be left out, but then the text is no reasoning.
        ('("<think>"? "\\n"? until-1 "</think>"?)? tool-call', '("<think>" "\\n"? until-1 "</think>"?)? tool-call'),
        ('("<say>" until-1 "</say>")? tool-call', "tool-call"),
        ('("<think>" until-1 tool-call | until-1 tool-call)', '("<think>" until-1 tool-call | SPACE tool-call)'),
        ('"(|" [)"] until-1{0,2} tool-call', '"(|" [)"] SPACE tool-call'),
        ('"a\\"<think>" until-1 tool-call', '"a\\"<think>" until-1 tool-call'),
    ],
)
def test_what_becomes_of_a_rule(prompt: ChatPrompt, root: str, written: str) -> None:
    given = replace(prompt, grammar=f"root ::= {root}\n{RULES}", generation_prompt="", thinking_start_tag="<think>")
    assert with_the_call_first(given).grammar == f"root ::= {written}\n{RULES}".replace("SPACE", r"[ \n]{0,4}")


def test_a_reply_that_was_begun_with_text_may_have_it(prompt: ChatPrompt) -> None:
    given = replace(prompt, grammar=f"root ::= until-1 tool-call\n{RULES}", generation_prompt="Well, ")
    assert with_the_call_first(given) == given
    assert allows_text_before(given)


@pytest.mark.parametrize(("begun", "allowed"), [("", False), ("<t>", False), ("<t>a</t>", False), ("<t>a</t>b", True)])
def test_reasoning_is_no_text_before_the_call(prompt: ChatPrompt, begun: str, allowed: bool) -> None:
    root = '("<t>" [a-z]* "</t>")? ("b" [A-Za-z, ]*)? tool-call'
    given = replace(
        prompt,
        grammar=f"root ::= {root}\n{RULES}",
        generation_prompt=begun,
        thinking_start_tag="<t>",
        thinking_end_tags=("</t>",),
    )
    assert allows_text_before(given) == allowed


@pytest.mark.parametrize("grammar", ["", "no grammar", 'root ::= "a'])
def test_what_is_no_grammar_allows_nothing(prompt: ChatPrompt, grammar: str) -> None:
    given = replace(prompt, grammar=grammar)
    assert with_the_call_first(given) == given
    assert not allows_text_before(given)


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "Qwen3-Coder", "Kimi-K3", "openai-gpt-oss-120b", "GLM-4.6"])
@pytest.mark.parametrize("thinking", [True, False])
def test_a_model_cannot_talk_instead(model: Model, name: str, thinking: bool) -> None:
    template = every_template.templates()[name]
    prompt = model.chat_format(HELLO, tools=[TOOL], tool_choice="required", template=template, enable_thinking=thinking)
    assert not allows_text_before(prompt)
    assert not any(schema_warnings(prompt, [TOOL], True))
    talk = "<|channel|>commentary<|message|>Hello" if "gpt-oss" in name else "Certainly"
    opened = prompt.generation_prompt.rstrip().endswith(prompt.thinking_start_tag or "no tag")
    with grammar_sampler(model, prompt, frozenset()) as sampler:  # type: ignore[union-attr]
        tokens = model.str_to_token(talk, add_special=False, parse_special=False).tolist()
        assert all(map(sampler.try_accept, tokens)) == opened


def test_a_template_of_which_that_cannot_be_held_warns(model: Model) -> None:
    prompt = model.chat_format(
        HELLO, tools=[TOOL], tool_choice="required", template=every_template.templates()["Qwen3-Coder"]
    )
    talking = replace(
        prompt,
        grammar=f"root ::= {prompt.generation_prompt!r} [^<]* tool-look-up".replace("'", '"')
        + '\ntool-look-up ::= "x"',
    )
    assert "may write text before the call" in "\n".join(schema_warnings(talking, [TOOL], True))
    assert not any("before the call" in each for each in schema_warnings(talking, [TOOL], False))
