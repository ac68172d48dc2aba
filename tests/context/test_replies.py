"""Replies as deltas: put together, they are the message, with every template."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_vocab
from chats import HELLO, REPLY, TEMPLATE, WEATHER

from moebind import ChatDelta, ChatMessage, ChatPrompt, ChatReply, ChatTemplateError, Context, Model, ModelParams, Piece
from moebind.context import replies
from moebind.context.pieces import Record

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "chat"))
import every_template


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tiny_vocab.write(tmp_path_factory.mktemp("replies") / "chat.gguf", tiny_vocab.bpe("gpt-2"))
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        yield model


def reply_of(prompt: ChatPrompt, text: str, step: int = 1, stop_reason: Any = "eog") -> ChatReply:
    """A reply that the model might have written, so many characters at a time."""
    parts = [text[at : at + step] for at in range(0, len(text), step)]
    pieces = [Piece(0, part, at) for at, part in enumerate(parts)]
    return ChatReply._of(prompt, (each for each in [*pieces, Piece(0, "", len(parts), stop_reason)]), Record(1))


def together(deltas: Sequence[ChatDelta]) -> dict[str, Any]:
    """What a client puts together."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    for delta in deltas:
        assert delta, "a delta with nothing new"
        message["content"] += delta.get("content", "")
        message["reasoning_content"] += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({key: value for key, value in call.items() if key != "index"})
                continue
            known = message["tool_calls"][call["index"]]
            known["function"]["arguments"] += call["function"]["arguments"]
            known["id"] = call.get("id", known["id"])
    return message


def stripped(message: ChatMessage | dict[str, Any]) -> dict[str, Any]:
    return {key: value.rstrip() if isinstance(value, str) else value for key, value in message.items()}


@pytest.fixture(autouse=True)
def parsed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes, so that every intermediate message is seen."""
    monkeypatch.setattr(replies, "PARSING_PAUSE", 0)


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_reasoning_content_and_calls(model: Model, step: int) -> None:
    prompt = model.chat_format(HELLO, template=TEMPLATE, tools=[WEATHER])
    reply = reply_of(prompt, REPLY.removeprefix("<think>\n") if "<think>" in prompt.generation_prompt else REPLY, step)
    deltas = list(reply.deltas())
    assert stripped(together(deltas)) == stripped(reply.message)
    assert reply.message["tool_calls"][0]["function"]["name"] == "weather"
    if step == 1:
        kinds = [next(iter(delta)) for delta in deltas]
        order = sorted(kinds, key=["reasoning_content", "content", "tool_calls"].index)
        assert kinds == order
        assert len(deltas) > 30
        begun = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
        assert begun[0]["id"] == reply.message["tool_calls"][0]["id"]
        assert all("id" not in call for call in begun[1:])


def test_two_calls(model: Model) -> None:
    prompt = model.chat_format(HELLO, template=TEMPLATE, tools=[WEATHER])
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
    reply = reply_of(prompt, call % "Rome" + "\n" + call % "Oslo")
    message = together(list(reply.deltas()))
    assert message["tool_calls"] == reply.message["tool_calls"]
    assert len(message["tool_calls"]) == 2


@pytest.mark.parametrize("end", [20, 60, 75, len(REPLY) - 3])
def test_what_is_cut_off(model: Model, end: int) -> None:
    prompt = model.chat_format(HELLO, template=TEMPLATE, tools=[WEATHER])
    reply = reply_of(prompt, REPLY[:end], 2, "length")
    assert stripped(together(list(reply.deltas()))) == stripped(reply.message)


def test_a_model_that_writes(talking: Context) -> None:
    reply = talking.chat(HELLO, max_tokens=12)
    first = next(reply)
    deltas = list(reply.deltas())
    assert together(deltas)["content"] == reply.message["content"]
    assert deltas[0]["content"].startswith(first.text), "what came before is in the first one"
    assert reply.usage.generated_tokens == 12
    assert list(reply.deltas()) == [{"content": reply.message["content"]}], "there is nothing left to generate"


def test_a_reply_that_has_no_message(model: Model) -> None:
    prompt = model.chat_format(HELLO, template=TEMPLATE, tools=[WEATHER])
    deltas = reply_of(prompt, REPLY + "x").deltas()
    shown = [next(deltas) for _ in range(5)]
    assert together(shown)["reasoning_content"] == "They a"
    with pytest.raises(ChatTemplateError, match="does not match"):
        list(deltas)


def test_parsing_leaves_most_of_the_time_to_the_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that parsing moves by one, and each piece by a third."""
    monkeypatch.setattr(replies, "PARSING_PAUSE", 9)
    prompt = model.chat_format(HELLO, template=TEMPLATE)
    now = [0.0]
    monkeypatch.setattr(replies.time, "perf_counter", lambda: now[0])
    parse = ChatPrompt.parse
    parsed = []

    def counted(self: ChatPrompt, text: str, *, partial: bool = False) -> ChatMessage:
        now[0] += 1
        parsed.append(len(text))
        return parse(self, text, partial=partial)

    monkeypatch.setattr(ChatPrompt, "parse", counted)
    reply = reply_of(prompt, "word " * 200)

    def ticking(pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            now[0] += 1 / 3
            yield piece

    reply._pieces = ticking(reply._pieces)
    assert together(list(reply.deltas()))["content"] == reply.text.rstrip()
    assert len(parsed) <= 1 + 0.1 * now[0]
    assert len(parsed) > 20


def test_what_does_not_continue_is_held_back() -> None:
    def message(content: str, calls: list[tuple[str, str]] | None = None) -> ChatMessage:
        return {
            "role": "assistant",
            "content": content,
            "reasoning_content": "",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
                for name, arguments in calls or []
            ],
        }

    shown = replies.Shown()
    assert shown.show(message("a b ")) == {"content": "a b"}
    assert shown.show(None) == {}
    assert shown.show(message("a")) == {}
    assert shown.show(message("xyz")) == {}
    assert shown.show(message("a b c", [("get", "")])) == {"content": " c"}
    assert "tool_calls" in shown.show(message("a b c", [("get_time", "{")]))
    assert shown.show(message("a b c", [("other", "{")])) == {}
    with pytest.raises(ChatTemplateError, match="does not continue"):
        shown.show(message("a x", [("get_time", "{}")]), ended=True)
    with pytest.raises(ChatTemplateError, match="the name of a call"):
        shown.show(message("a b c", [("other", "{}")]), ended=True)


@pytest.mark.thorough
def test_every_template(model: Model) -> None:
    import test_every_template as every

    wrong: dict[str, object] = {}
    n_read = 0
    for name, template in every_template.templates().items():
        try:
            prompt = model.chat_format(HELLO, template=template, tools=every.TOOLS)
        except ChatTemplateError:
            continue
        texts = [*every.calls(model, prompt, template)[:1], "Hello there! <b>5 < 7</b>\n\nBye.  \n"]
        texts += [f"Let me think.\n\nMore.{tag}\n\nThe answer is 42." for tag in prompt.thinking_end_tags[:1]]
        for text in texts:
            try:
                whole = prompt.parse(text)
            except ChatTemplateError:
                continue  # it is not what this template's model writes
            got = together(list(reply_of(prompt, text, 3).deltas()))
            n_read += 1
            if stripped(got) != stripped(whole):
                wrong[f"{name}: {text[:30]}"] = (got, whole)
    assert not wrong
    assert n_read > 100
