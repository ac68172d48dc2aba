"""Messages and tools, checked before the template engine sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import chats
import pytest
from chats import DEEP
from hypothesis import given
from hypothesis import strategies as st

from moebind import Model
from moebind.chat.messages import NESTING_MAX, checked_json, checked_messages, checked_tool_choice, checked_tools


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with chats.templates(tmp_path_factory.mktemp("chat")) as model:
        yield model


USER: dict[str, object] = {"role": "user", "content": "a"}


def call(**function: object) -> list[object]:
    return [{"role": "assistant", "tool_calls": [{"function": function}]}]


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        (None, TypeError, "messages is None"),
        ("Hello", TypeError, "messages is 'Hello'"),
        ({"role": "user"}, TypeError, "list of dicts"),
        ([], ValueError, "messages is empty"),
        ([USER, "Hello"], TypeError, r"messages\[1\] is 'Hello'"),
        ([USER, {"content": "a"}], ValueError, r"messages\[1\] has no 'role'"),
        ([{"role": "", "content": "a"}], ValueError, "empty"),
        ([{"role": 3, "content": "a"}], TypeError, r"messages\[0\]\['role'\] is 3"),
        ([USER, {"role": "user"}], ValueError, r"messages\[1\] has neither"),
        ([{"role": "user", "content": 3}], TypeError, "content"),
        ([{"role": "user", "content": b"a"}], TypeError, "content"),
        ([{"role": "user", "content": "\ud800"}], ValueError, "lone surrogate"),
        ([{"role": "user", "content": [3]}], TypeError, r"\['content'\]\[0\]"),
        ([{"role": "user", "content": [{"type": "text"}]}], TypeError, "text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            ValueError,
            "image_url.*pictures and sound need mtmd=",
        ),
        ([{"role": "assistant", "tool_calls": 3}], TypeError, "tool_calls"),
        ([{"role": "assistant", "tool_calls": [3]}], TypeError, r"tool_calls'\]\[0\]"),
        ([{"role": "assistant", "tool_calls": [{"type": "x"}]}], ValueError, "type 'x'"),
        ([{"role": "assistant", "tool_calls": [{"type": "function"}]}], TypeError, "function"),
        (call(arguments="{}"), TypeError, "name"),
        (call(name="f", arguments=3), TypeError, "arguments"),
        (call(name="f", arguments={"a": float("nan")}), ValueError, "finite"),
        (call(name="f", arguments={"a": {1: 2}}), TypeError, "key 1"),
        (call(name="f", arguments={"a": DEEP}), ValueError, "nested more than 100"),
        (call(name="f", arguments="[" * 200), ValueError, "nested more than 100"),
        ([{**USER, "reasoning_content": 3}], TypeError, "reasoning_content"),
        ([{**USER, "tool_call_id": 3}], TypeError, "tool_call_id"),
    ],
)
def test_bad_messages(model: Model, messages: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.apply_chat_template(messages)


def test_messages_are_rebuilt_of_plain_types() -> None:
    given = (
        {
            "role": "user",
            "content": [{"type": "text", "text": "a", "more": object()}],
            "name": "Ann",
            "unknown": object(),
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": []},
    )
    assert checked_messages(given) == [
        {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "Ann"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}, "id": "x"}],
        },
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
    ]


@pytest.mark.parametrize(
    "tool",
    [{"name": "look"}, {"type": "function", "name": "look", "parameters": {}}, {"name": "look", "input_schema": {}}],
)
def test_tools_in_another_form_are_told_of_openais(tool: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"tools\[0\] has its 'name' outside .*'function': \{'name': 'look', ...\}\}"):
        checked_tools([tool])
    with pytest.raises(ValueError, match="tool_choice has its 'name' outside"):
        checked_tool_choice({"type": "function", "name": "look"}, [])
    call = {"role": "assistant", "tool_calls": [{"name": "look", "arguments": "{}"}]}
    with pytest.raises(ValueError, match=r"messages\[0\]\['tool_calls'\]\[0\] has its 'name' outside"):
        checked_messages([call])


def test_tools_are_rebuilt_of_plain_types() -> None:
    assert checked_tools(None) is None
    assert checked_tools([]) is None
    function = {
        "name": "f",
        "description": None,
        "parameters": {"type": "object", "required": ("a",)},
        "more": object(),
    }
    assert checked_tools(({"function": function},)) == [
        {
            "type": "function",
            "function": {"name": "f", "description": "", "parameters": {"type": "object", "required": ["a"]}},
        }
    ]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_json_is_copied_as_it_is(value: object) -> None:
    assert json.dumps(checked_json("x", value)) == json.dumps(value)


def nested(depth: int) -> object:
    value: object = 1
    for at in range(depth):
        value = [value] if at % 2 else {"a": value}
    return value


def test_json_is_nested_only_so_deep() -> None:
    assert checked_json("x", nested(NESTING_MAX)) == nested(NESTING_MAX)
    with pytest.raises(ValueError, match="nested more than 100 levels deep"):
        checked_json("x", nested(NESTING_MAX + 1))
    # Brackets in texts are no nesting.
    assert checked_messages(call(name="f", arguments=json.dumps({"a": "[" * 500})))
