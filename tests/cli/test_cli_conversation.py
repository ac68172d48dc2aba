"""Files that keep a chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chats import HELLO, TEMPLATE, WEATHER
from commands import Capture
from typist import type_lines

from moebind import Context
from moebind.cli.conversation import Conversation, read_messages
from moebind.cli.terminal import Terminal


def test_chats_are_read_as_they_were_written(context: Context, tmp_path: Path) -> None:
    chat = Conversation(context, Terminal(), {})
    chat.messages = [*HELLO, {"role": "assistant", "content": "wörd 😀", "reasoning_content": "", "tool_calls": []}]
    path = tmp_path / "chat.json"
    for _ in range(2):  # over another chat, too
        chat.save(str(path))
        # OpenAI's API takes no empty list of calls.
        assert read_messages(path) == [*HELLO, {"role": "assistant", "content": "wörd 😀"}]
    assert "wörd 😀" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_the_system_prompt_is_the_first_message(context: Context) -> None:
    chat = Conversation(context, Terminal(), {})
    assert chat.system is None
    chat.messages = list(HELLO)
    chat.system = "Be brief."
    chat.system = "Be long."
    assert chat.messages == [{"role": "system", "content": "Be long."}, *HELLO]
    chat.undo()
    assert (chat.system, len(chat.messages)) == ("Be long.", 1)
    chat.clear()
    assert chat.system == "Be long."
    chat.system = ""
    assert (chat.system, chat.messages) == (None, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON, as chats are saved in"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"GGUF and more", "is not JSON, as chats are saved in"),
        (b"[]", "holds no chat: messages is empty"),
        (b'{"role": "user"}', "holds no chat: messages is"),
        (b'["hello"]', "holds no chat: messages"),
        (b'[{"content": "hello"}]', "holds no chat: messages.0. has no 'role'"),
        (b"[" * 100_000, "is not JSON, as chats are saved in|holds no chat"),
    ],
    ids=range(8),
)
def test_what_is_no_chat_is_neither_read_nor_replaced(
    context: Context, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_messages(path)
    chat = Conversation(context, Terminal(), {})
    chat.messages = list(HELLO)
    if content:
        with pytest.raises(ValueError, match=message):
            chat.save(str(path))
        assert path.read_bytes() == content
    else:  # nothing is lost
        chat.save(str(path))
        assert json.loads(path.read_bytes()) == HELLO


def test_nothing_to_save_and_nowhere(context: Context, tmp_path: Path) -> None:
    chat = Conversation(context, Terminal(), {})
    with pytest.raises(ValueError, match="there is nothing to save yet"):
        chat.save(str(tmp_path / "chat.json"))
    chat.messages = list(HELLO)
    with pytest.raises(OSError, match=r"none/chat.json cannot be saved: there is no folder .*none$"):
        chat.save(str(tmp_path / "none" / "chat.json"))
    with pytest.raises(OSError, match="directory"):
        chat.save(str(tmp_path))


def test_calls_are_answered_by_whoever_types(
    talking: Context, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    type_lines(monkeypatch, "It rains.")
    arguments = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "template": TEMPLATE}
    chat = Conversation(talking, Terminal(), {**arguments, "max_tokens": 40})
    assert not chat.ask("What is the weather in Paris?")
    asked, call, result, reply = chat.messages
    assert asked["content"] == "What is the weather in Paris?"
    [function] = call["tool_calls"]  # type: ignore[misc]
    assert function["function"]["name"] == "weather"  # type: ignore[index]
    assert result == {"role": "tool", "tool_call_id": function["id"], "name": "weather", "content": "It rains."}  # type: ignore[index]
    assert reply["role"] == "assistant"
    said = capsys.readouterr()
    assert said.err.startswith("call weather({")
    assert said.out.strip() == str(reply["content"]).strip()


def test_calls_that_nobody_answers_end_the_turn(talking: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    type_lines(monkeypatch)
    arguments = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "template": TEMPLATE}
    chat = Conversation(talking, Terminal(), {**arguments, "max_tokens": 40})
    assert not chat.ask("What is the weather in Paris?")
    assert [each["role"] for each in chat.messages] == ["user", "assistant"]
