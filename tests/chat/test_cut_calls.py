"""Calls in the history whose arguments are no JSON: what max_tokens cut off, and what clients send for no arguments."""

from __future__ import annotations

from collections.abc import Iterator

import every_template
import pytest
import tiny_vocab

from moebind import ChatTemplateError, Model, ModelParams
from moebind.chat.named_templates import chatml_tools

HELLO = [{"role": "user", "content": "Look"}]
TEMPLATE = chatml_tools()
#: Needs the arguments one by one.
ITEMS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<function={{ c.function.name }}>"
    "{% for k, v in c.function.arguments | items %}<parameter={{ k }}>{{ v }}</parameter>{% endfor %}{% endfor %}"
    "{% endfor %}"
)
LOOK = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"where": {"type": "string"}}}},
}
CUT = ['{"where": "Ro', '{"where": ', "{", '{"where": "Rome"', '{"where": 1e999}', '{"where": "\\ud800"}', "Rome"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("cut") / "chat.gguf"
    tiny_vocab.write(path, tiny_vocab.bpe("gpt-2"), **{"tokenizer.chat_template": TEMPLATE})
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        yield model


def chat(*arguments: object) -> list[dict[str, object]]:
    functions = [{"name": "look", "arguments": each} for each in arguments]
    calls = [{"id": "abc123DEF", "type": "function", "function": each} for each in functions]
    return [*HELLO, {"role": "assistant", "content": "", "tool_calls": calls}, {"role": "user", "content": "Go on"}]


@pytest.mark.parametrize("arguments", CUT)
def test_what_was_cut_off_is_kept_as_text(model: Model, arguments: str) -> None:
    text = model.apply_chat_template(chat(arguments, '{"where": "Oslo"}'), tools=[LOOK])
    assert f'"arguments": {arguments}}}' in text
    assert '"arguments": {"where": "Oslo"}}' in text
    assert "Go on" in text


@pytest.mark.parametrize("arguments", ["", "  \n", "{}", None])
@pytest.mark.parametrize("template", [TEMPLATE, ITEMS])
def test_no_arguments(model: Model, arguments: str | None, template: str) -> None:
    text = model.apply_chat_template(chat(arguments), template=template, tools=[LOOK])
    assert ("<function=look>Go on" if template == ITEMS else '"arguments": {}}') in text


@pytest.mark.parametrize("arguments", CUT)
def test_a_template_that_cannot_hold_text_is_told_which_call(model: Model, arguments: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"messages\[1\]\['tool_calls'\]\[1\]'s arguments are no JSON"):
        model.apply_chat_template(chat("{}", arguments), template=ITEMS)


def test_a_cut_reply_goes_back_into_every_chat(model: Model) -> None:
    """It is rendered, or the error names the message."""
    named = {}
    for name, template in every_template.templates().items():
        try:
            text = model.apply_chat_template(chat('{"where": "Ro'), template=template, tools=[LOOK])
            assert "Go on" in text
        except ChatTemplateError as error:
            named[name] = str(error)
    assert len(named) < 30
    for name, message in named.items():
        assert "messages[1]['tool_calls'][0]'s arguments are no JSON" in message, name
