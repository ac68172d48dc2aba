"""``agenerate`` and ``achat``: the part of ``Context`` that generates for asyncio."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from moebind.chat.messages import checked_messages, checked_tool_choice, checked_tools
from moebind.chat.prompt import ChatMessage, ChatPrompt
from moebind.context.asynchronous import AsyncStream, Enter, Leave, in_thread
from moebind.context.conversation import Conversation
from moebind.context.generate import Generation
from moebind.context.media import has_media
from moebind.context.media_messages import without_media
from moebind.context.pieces import Completion, Piece, Record, StopReason, Stream, Usage
from moebind.context.replies import ChatDelta, ChatReply, message_of
from moebind.context.stops import Stop
from moebind.context.turns import Turns
from moebind.context.unknown_arguments import refuse, unknown_of

__all__ = ["AsyncChatReply", "AsyncGeneration", "AsyncPieces", "with_arguments_of"]

P = ParamSpec("P")
R = TypeVar("R")


def with_arguments_of(
    method: Callable[Concatenate[Any, P], object],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Have a method take the arguments of another one, to which it hands them; they are declared there."""

    def decorate(function: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        given, own = inspect.signature(method), inspect.signature(function)
        function.__signature__ = given.replace(  # type: ignore[attr-defined]
            return_annotation=own.return_annotation
        )
        return function

    return decorate


class _Source:
    """What the thread generates, once it does."""

    stream: Any = None


def _starting(source: _Source, start: Callable[[Any], Stream], context: object) -> Stream:
    source.stream = start(context)
    return source.stream  # type: ignore[no-any-return]


class _AsyncGeneration(AsyncStream[Piece]):
    """A generation that goes on: an asynchronous iterator of pieces, which remembers what came."""

    def __init__(self, enter: Enter, start: Callable[[Any], Stream]) -> None:
        self._source = _Source()
        self._record = Record(0)
        # The thread must not hold this object: whoever drops it wants no more.
        super().__init__(enter, partial(_starting, self._source, start))

    async def __anext__(self) -> Piece:
        piece = await super().__anext__()
        self._record.pieces.append(piece)
        return piece

    def __repr__(self) -> str:
        so_far = f"{len(self._record.pieces)} tokens so far"
        return f"<{type(self).__name__}, {so_far}: async for loops over it, or await .complete() gives the whole>"

    def _known(self) -> Record:
        """What came, as far as it was fetched."""
        if self._source.stream is not None:
            made: Record = self._source.stream._record
            self._record.n_prompt, self._record.n_cached = made.n_prompt, made.n_cached
            self._record._stop_reason = made._stop_reason
        return self._record

    @property
    def text(self) -> str:
        """The text so far, as the model wrote it: empty before the first piece, all of it after :meth:`complete`."""
        return self._known().text

    @property
    def stop_reason(self) -> StopReason | None:
        """Why it ended, as in :class:`Piece`; None until then."""
        return self._known().stop_reason

    @property
    def stop(self) -> Stop | None:
        """Which stop came, as in :class:`Piece`."""
        return self._known().stop

    @property
    def usage(self) -> Usage:
        """How many tokens it took so far; zeros before the first piece."""
        return self._known().usage


class AsyncPieces(_AsyncGeneration):
    """A text while it is generated: an asynchronous iterator of :class:`Piece`. Made by ``Context.agenerate``.

    It computes in a thread of its own, ahead of who fetches the pieces. It ends, and its context is free for others,
    with the text; or as soon as its task is cancelled, :meth:`aclose` is called, its ``async with`` block is left, or
    nothing refers to it any more: the computation is then aborted.

    Examples
    --------
    >>> async for piece in context.agenerate("Once upon a time", max_tokens=32):
    ...     print(piece.text, end="", flush=True)
    >>> pieces = context.agenerate("The capital of France is", max_tokens=8)
    >>> completion = await pieces.complete()
    """

    async def complete(self) -> Completion:
        """Wait for the rest, and return the whole, with what came before."""
        async for _ in self:
            pass
        return self._known().completion()


class AsyncChatReply(_AsyncGeneration):
    """A reply while it is generated: an asynchronous iterator of :class:`Piece`. Made by ``Context.achat``.

    It is computed, and ends, like :class:`AsyncPieces`.

    Examples
    --------
    >>> reply = context.achat([{"role": "user", "content": "Hello"}], max_tokens=64)
    >>> async for piece in reply:
    ...     print(piece.text, end="", flush=True)
    >>> messages.append(await reply.complete())
    """

    _by_deltas: Callable[[], AsyncStream[ChatDelta] | None] | None = None

    @property
    def prompt(self) -> ChatPrompt | None:
        """The chat as it was rendered; None before the first piece."""
        reply: ChatReply | None = self._source.stream
        return None if reply is None else reply.prompt

    @property
    def message(self) -> ChatMessage:
        """The reply as a message, as far as it was fetched: ``ChatReply.message``.

        It is parsed each time, in this thread; :meth:`complete` parses it in another one.

        Raises
        ------
        RuntimeError
            Before the first piece, when the chat is not rendered yet.
        ChatTemplateError
            If the reply does not have the form of the template's replies.
        """
        return message_of(self._begun_prompt(), self._known())

    async def complete(self) -> ChatMessage:
        """Wait for the rest, and return the whole as a message, as ``ChatReply.complete`` does."""
        async for _ in self:
            pass
        return await in_thread(partial(message_of, self._begun_prompt(), self._known()))

    def _begun_prompt(self) -> ChatPrompt:
        prompt = self.prompt
        if prompt is None:
            if self._over:
                raise RuntimeError("this reply was closed before it began, so there is no message")
            raise RuntimeError("there is no message yet: await the reply's first piece, or complete()")
        return prompt

    def deltas(self) -> AsyncIterator[ChatDelta]:
        """What is new of the message, from its beginning on, as ``ChatReply.deltas`` gives it.

        Returns
        -------
        AsyncIterator of ChatDelta
            In the place of the pieces: ask for it before the first one. Parsing is done in the thread that generates.
        """
        if self._work is not None or self._over or self._by_deltas is not None:
            raise RuntimeError("this reply has begun: ask for deltas() of a new one, before its first piece")
        deltas = self._stream_of_deltas()
        self._by_deltas = weakref.ref(deltas)
        return deltas

    def _stream_of_deltas(self) -> AsyncStream[ChatDelta]:
        return AsyncStream(self._enter, partial(_deltas, self._make))

    async def __anext__(self) -> Piece:
        if self._by_deltas is not None:
            raise RuntimeError("this reply is given as deltas(), and can be iterated once")
        return await super().__anext__()

    def _known(self) -> Record:
        if self._by_deltas is not None and self._source.stream is not None:
            made: Record = self._source.stream._record
            return made
        return super()._known()

    async def aclose(self) -> None:
        """End it: the computation is aborted, and its context is free when this returns. Closing twice does nothing."""
        deltas = self._by_deltas and self._by_deltas()
        if deltas is not None:
            await deltas.aclose()
        await super().aclose()


def _deltas(make: Callable[[Any], Iterator[Piece]], context: object) -> Iterator[ChatDelta]:
    reply = make(context)
    assert isinstance(reply, ChatReply)  # noqa: S101
    return reply.deltas()


class AsyncGeneration(Conversation):
    """A context that generates for asyncio. :class:`moebind.Context` is one."""

    #: Who generates in each sequence.
    _turns: dict[int, Turns[None]]

    @with_arguments_of(Generation.generate)
    def agenerate(self, prompt: Any, **options: Any) -> AsyncPieces:
        """Generate text for asyncio: an asynchronous iterator of pieces.

        The arguments are those of :meth:`generate`.

        Returns
        -------
        AsyncPieces
            An asynchronous iterator of :class:`Piece`, which computes in a thread of its own: neither the event loop
            nor its pool of threads is kept busy. A generation that is cancelled, closed or dropped is aborted.

        Raises
        ------
        Exception
            What :meth:`generate` raises for its arguments: at once for what can be seen without computing, and
            with the first piece for what takes the model, such as how many tokens a text has.

        Notes
        -----
        While another ``agenerate`` or :meth:`achat` works in the same sequence, it waits for its turn. A call of
        :meth:`generate` does not wait, and takes the sequence over.

        Examples
        --------
        >>> async with context.agenerate("Once upon a time", max_tokens=32) as pieces:
        ...     async for piece in pieces:
        ...         print(piece.text, end="", flush=True)
        """
        self._check_agenerate(prompt, options)
        return AsyncPieces(partial(self._enter, options), lambda context: context.generate(prompt, **options))

    @with_arguments_of(Conversation.chat)
    def achat(self, messages: Any, **options: Any) -> AsyncChatReply:
        """Answer messages for asyncio: an asynchronous iterator of pieces.

        The arguments are those of :meth:`chat`. For all else, see :meth:`agenerate`.

        Returns
        -------
        AsyncChatReply
            An asynchronous iterator of :class:`Piece`; ``await reply.complete()`` is the message.

        Examples
        --------
        >>> reply = context.achat([{"role": "user", "content": "Hello"}], max_tokens=32)
        >>> print((await reply.complete())["content"])
        """
        self._check_achat(messages, options)
        return AsyncChatReply(partial(self._enter, options), lambda context: context.chat(messages, **options))

    def _check_agenerate(self, prompt: Any, options: dict[str, Any]) -> None:
        """Raise for what is wrong with arguments of :meth:`agenerate`, as far as that can be seen at once."""
        refuse("agenerate", Generation.generate, unknown_of(Generation.generate, options))
        self._check_options(options)
        mtmd = options.get("mtmd")
        if has_media(prompt, mtmd):
            return
        checked = self._model._checked_prompt(prompt if mtmd is None else without_media(prompt))
        if isinstance(checked, np.ndarray):
            self._check_length(checked.size)

    def _check_achat(self, messages: Any, options: dict[str, Any]) -> None:
        """The same for :meth:`achat`."""
        refuse("achat", Conversation.chat, unknown_of(Conversation.chat, options))
        self._check_options(options)
        checked_messages(messages if options.get("mtmd") is None else without_media(messages))
        checked_tool_choice(options.get("tool_choice", "auto"), checked_tools(options.get("tools")) or [])

    async def _enter(self, options: dict[str, Any]) -> tuple[AsyncGeneration, Leave]:
        """Wait until no other asynchronous generation works in the sequence."""
        seq = self._seq("seq_id", options.get("seq_id", 0))
        turns = self._turns.setdefault(seq, Turns([None]))
        await turns.take()
        return self, partial(turns.give, None)
