"""Messages and tools, checked before the template engine sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import chats
import pytest
from chats import DEEP

from moebind import ChatTemplateError, Model


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
            "image_url.*images and sound are not supported yet",
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
        (call(name="f", arguments='{"a": '), ChatTemplateError, "arguments as JSON"),
        ([{**USER, "reasoning_content": 3}], TypeError, "reasoning_content"),
        ([{**USER, "tool_call_id": 3}], TypeError, "tool_call_id"),
    ],
)
def test_bad_messages(model: Model, messages: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.apply_chat_template(messages)
