"""Replies: as messages, whole and while they grow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import chats
import pytest
from chats import HELLO, REPLY, WEATHER
from hypothesis import given, settings
from hypothesis import strategies as st

from moebind import ChatPrompt, ChatTemplateError, Model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with chats.templates(tmp_path_factory.mktemp("chat")) as model:
        yield model


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


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [(None, TypeError, "text"), (b"a", TypeError, "text"), ("\ud800", ValueError, "surrogate")],
)
def test_bad_replies(model: Model, text: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.parse_chat_response(text)
    with pytest.raises(TypeError, match="partial"):
        model.parse_chat_response("a", partial=1)  # type: ignore[arg-type]
