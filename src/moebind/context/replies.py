"""Replies of a chat while they are generated: as pieces, as messages, and as what is new of a message."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypedDict

from moebind.chat.prompt import ChatMessage, ChatPrompt
from moebind.context.pieces import Piece, Record, Stream
from moebind.errors import ChatTemplateError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ChatDelta", "ChatReply", "Parsing", "ToolCallDelta", "ToolFunctionDelta"]

#: A reply is parsed from its beginning each time. So this many times as long as it took is spent on generating first.
PARSING_PAUSE = 9


class ToolFunctionDelta(TypedDict, total=False):
    """The function of a :class:`ToolCallDelta`: ``name``, and more of the ``arguments``."""

    name: str
    arguments: str


class ToolCallDelta(TypedDict, total=False):
    """What is new of a tool call, in a :class:`ChatDelta`: a dict.

    Attributes
    ----------
    index : int
        Which of the reply's calls it belongs to, from 0 on; always there.
    id, type : str
        As in :class:`ToolCall`; when the call begins. The ``id`` comes again if the model writes one at the call's end.
    function : dict
        ``name``, when the call begins, and ``arguments``, more of their JSON; always there.
    """

    index: int
    id: str
    type: Literal["function"]
    function: ToolFunctionDelta


class ChatDelta(TypedDict, total=False):
    """What is new of a reply: a dict in the form of the deltas of OpenAI's streams. It has what is new, and no more.

    Attributes
    ----------
    content : str
        More of the answer.
    reasoning_content : str
        More of the reasoning.
    tool_calls : list of ToolCallDelta
        Calls that begin, or more of their arguments.
    """

    content: str
    reasoning_content: str
    tool_calls: list[ToolCallDelta]


class ChatReply(Stream):
    """A reply while it is generated: an iterator of :class:`Piece`. Made by ``Context.chat``.

    Attributes
    ----------
    prompt : ChatPrompt
        The chat as it was rendered.

    Examples
    --------
    >>> reply = context.chat([{"role": "user", "content": "Hello"}], max_tokens=64)
    >>> for piece in reply:
    ...     print(piece.text, end="", flush=True)
    >>> messages.append(reply.message)
    """

    prompt: ChatPrompt

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("replies are made by Context.chat(messages)")

    @classmethod
    def _of(cls, prompt: ChatPrompt, pieces: Iterator[Piece], record: Record) -> Self:
        reply = cls.__new__(cls)
        reply._start(pieces, record)
        reply.prompt = prompt
        return reply

    @property
    def message(self) -> ChatMessage:
        """The reply as a message: a dict with ``role``, ``content``, ``reasoning_content`` and ``tool_calls``.

        You can ask for it at any time; each time the whole reply is parsed. Before the end, and if something other than
        the model ended the reply, it is what is known so far. Append it to the messages for the next call.

        Raises
        ------
        ChatTemplateError
            If the reply does not have the form of the template's replies; ``text`` is what the model wrote.
        """
        return message_of(self.prompt, self._record)

    def complete(self) -> ChatMessage:
        """Generate the rest, and return the whole :attr:`message`."""
        for _ in self:
            pass
        return self.message

    def deltas(self) -> Iterator[ChatDelta]:
        """Generate the rest, and give what is new of the :attr:`message`, from its beginning on.

        Yields
        ------
        ChatDelta
            A dict with ``content``, ``reasoning_content`` or ``tool_calls``. Put together they are the whole message,
            but for white space at the end of a text.

        Raises
        ------
        ChatTemplateError
            At the end, if the reply does not have the form of the template's replies.

        Notes
        -----
        llama.cpp parses a reply from its beginning each time. So that this takes no more than a tenth of the time, a
        long reply is not parsed after every token: its deltas are fewer, and longer.

        Examples
        --------
        >>> for delta in context.chat(messages).deltas():
        ...     print(delta.get("content", ""), end="", flush=True)
        """
        parsing = Parsing(self)
        for piece in self:
            delta = parsing.more() if parsing.is_due(piece) else {}
            if delta:
                yield delta
        last = parsing.last()
        if last:
            yield last

    def _so_far(self) -> ChatMessage | None:
        """The message so far, if that can be told."""
        try:
            return self.message
        except ChatTemplateError:
            return None  # it may become one; at the end it is an error


def message_of(prompt: ChatPrompt, record: Record) -> ChatMessage:
    """The message that a text is, or is to become."""
    return prompt.parse(record.text, partial=record.stop_reason != "eog")


class Parsing:
    """Gives what is new of a reply, now and then: it is parsed from its beginning each time."""

    def __init__(self, reply: ChatReply) -> None:
        self._reply, self._shown, self._parse_at = reply, Shown(), 0.0

    def is_due(self, piece: Piece) -> bool:
        """Whether to look for what is new, after this piece; at the end, :meth:`last` does."""
        return bool(piece.text) and piece.stop_reason is None and time.perf_counter() >= self._parse_at

    def more(self) -> ChatDelta:
        """What is new, as far as that can be told; empty if nothing is."""
        begun = time.perf_counter()
        delta = self._shown.show(self._reply._so_far())
        ended = time.perf_counter()
        self._parse_at = ended + PARSING_PAUSE * (ended - begun)
        return delta

    def last(self) -> ChatDelta:
        """What is new at the end."""
        return self._shown.show(self._reply.message, ended=True)


class Shown:
    """What was shown of a message, which becomes longer."""

    def __init__(self) -> None:
        self._content = self._reasoning = ""
        #: Id, name and arguments of each call.
        self._calls: list[tuple[str, str, str]] = []

    def show(self, message: ChatMessage | None, ended: bool = False) -> ChatDelta:
        """What is new; empty if nothing is.

        Raises
        ------
        ChatTemplateError
            At the end, if the message does not continue what was shown.
        """
        if message is None:
            return {}
        delta: ChatDelta = {}
        if reasoning := self._more("reasoning_content", self._reasoning, message["reasoning_content"], ended):
            delta["reasoning_content"] = reasoning
            self._reasoning += reasoning
        if content := self._more("content", self._content, message["content"], ended):
            delta["content"] = content
            self._content += content
        if calls := self._more_calls(message, ended):
            delta["tool_calls"] = calls
        return delta

    def _more_calls(self, message: ChatMessage, ended: bool) -> list[ToolCallDelta]:
        new: list[ToolCallDelta] = []
        last = len(message["tool_calls"]) - 1
        for index, call in enumerate(message["tool_calls"]):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            if index == len(self._calls):
                # A name may still become longer, while nothing follows it.
                if not (ended or arguments or index < last):
                    break
                new.append({"index": index, "id": call["id"], "type": "function", "function": {**call["function"]}})
                self._calls.append((call["id"], name, arguments))
                continue
            known_id, known, before = self._calls[index]
            if known != name:
                if ended:
                    raise ChatTemplateError(_changed("the name of a call", known, name))
                break
            more = self._more("arguments", before, arguments, ended, strip=False)
            if more or known_id != call["id"]:
                delta: ToolCallDelta = {"index": index, "function": {"arguments": more}}
                if known_id != call["id"]:
                    delta["id"] = call["id"]
                new.append(delta)
                self._calls[index] = (call["id"], name, before + more)
        return new

    @staticmethod
    def _more(name: str, before: str, now: str, ended: bool, strip: bool = True) -> str:
        if strip:
            now = now.rstrip()  # at the very end, it may be left out of the message yet
        if now.startswith(before):
            return now[len(before) :]
        if ended and not before.startswith(now):
            raise ChatTemplateError(_changed(name, before, now))
        return ""


def _changed(name: str, before: str, now: str) -> str:
    return (
        f"llama.cpp read {name} of the unfinished reply as {before[-40:]!r} and then as {now[-40:]!r}, which does not "
        "continue it: reply.message is what the whole reply says"
    )
