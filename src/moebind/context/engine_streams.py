"""What an engine gives to coroutines: streams that wait for the engine's thread, and have none of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moebind.context.async_generation import AsyncChatReply, AsyncPieces
from moebind.context.asynchronous import AsyncStream, Leave, in_thread
from moebind.context.deliveries import ToTask
from moebind.context.pieces import Stream
from moebind.context.replies import ChatDelta, ChatReply, Parsing

__all__ = ["EngineChatReply", "EnginePieces", "Prepared"]

#: A stream whose request is yet to be submitted, and what submits it.
Prepared = tuple[Stream, Callable[[], ToTask]]


class EnginePieces(AsyncPieces):
    """Pieces that are computed by an engine."""

    def _working(self, where: Prepared, leave: Leave) -> ToTask:
        stream, submit = where
        self._make(stream)
        return submit()


class EngineChatReply(AsyncChatReply):
    """A reply that is computed by an engine."""

    _working = EnginePieces._working

    def _stream_of_deltas(self) -> AsyncStream[ChatDelta]:
        make: Callable[[Any], Any] = self._make
        return _DeltaStream(self._enter, make)


class _DeltaStream(AsyncStream[ChatDelta]):
    """What is new of a reply that is computed by an engine."""

    def _working(self, where: Prepared, leave: Leave) -> _Deltas:
        stream, submit = where
        self._make(stream)
        assert isinstance(stream, ChatReply)  # noqa: S101
        return _Deltas(submit(), stream)


class _Deltas:
    """Makes deltas of pieces: the work of a stream. A thread parses, where there is something to be parsed."""

    def __init__(self, pieces: ToTask, reply: ChatReply) -> None:
        self._pieces, self._reply = pieces, reply
        self._parsing = Parsing(reply)
        self._over = False

    async def fetch(self) -> ChatDelta:
        """What is new."""
        while not self._over:
            try:
                piece = await self._pieces.fetch()
            except StopAsyncIteration:
                self._over = True
                break
            self._reply._record.pieces.append(piece)
            if self._parsing.is_due(piece):
                delta = await in_thread(self._parsing.more)
                if delta:
                    return delta
            if piece.stop_reason is not None:
                self._over = True
                last = await in_thread(self._parsing.last)
                if last:
                    return last
        raise StopAsyncIteration

    async def ended(self) -> None:
        """Wait until its room is given back."""
        await self._pieces.ended()

    def leave(self) -> None:
        """Want no more."""
        self._pieces.leave()
