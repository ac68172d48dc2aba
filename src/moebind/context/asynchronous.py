"""Generating for asyncio: pieces are computed in a thread of their own, and awaited by a coroutine.

The thread does not wait for the coroutine. A generation ends when it ends, however slowly its pieces are fetched; so a
slow client never keeps a context from others. When the coroutine goes away (it is cancelled, closes the generation, or
drops it), the computation is aborted at once. That abort is the thread's own: it cannot meet what comes later.

Whoever asks for a sequence that another asynchronous generation works on waits in a queue, not in a thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar
from weakref import WeakSet

from moebind._core.native import Hooks, ffi, lib

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["AsyncStream", "Enter", "Leave", "Work", "Working", "in_thread"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")

#: How a text is awaited whole.
_WHOLE = "put .complete() behind it, as in await engine.agenerate(prompt).complete()"
#: What gives back what a generation used, from any thread.
Leave = Callable[[], None]
#: What waits for a turn.
Enter = Callable[[], Coroutine[Any, Any, tuple[Any, Leave]]]


class Working(Protocol[T_co]):
    """Something that is computed elsewhere for one coroutine."""

    async def fetch(self) -> T_co:
        """The next item; raises StopAsyncIteration behind the last one."""

    async def ended(self) -> None:
        """Wait until everything that it uses is given back."""

    def leave(self) -> None:
        """Have it end as soon as it can, and take no notice of what comes. Any thread may call it."""


class _Once:
    """Something that is called once, by whoever comes first: Ctrl-C can interrupt who meant to."""

    def __init__(self, call: Leave) -> None:
        self._calls = [call]

    def __call__(self) -> None:
        while self._calls:
            self._calls.pop()()


class Work(Generic[T]):
    """A thread that computes, and what it has computed for one coroutine.

    Parameters
    ----------
    make
        Called in the thread: gives the iterator of what is computed.
    leave
        Called at the end, in the thread.
    """

    def __init__(self, make: Callable[[], Iterator[T]], leave: Leave) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[T] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._arrived = asyncio.Event()
        #: Whether the coroutine went away.
        self._left = False
        #: What stops the computations of the thread.
        self._hooks = Hooks()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run, make, leave), name="moebind generation", daemon=True
        )
        _running.add(self)
        self._thread.start()

    def _run(self, make: Callable[[], Iterator[T]], leave: Leave) -> None:
        try:
            self._compute(make)
        except BaseException as error:
            if not self._left:  # the coroutine raises it
                self._error = error
        finally:
            leave()
            self._ended = True
            self._tell()

    def _compute(self, make: Callable[[], Iterator[T]]) -> None:
        lib.moebind_hooks_of_thread(self._hooks.pointer)
        try:
            if self._left:
                return
            computed = make()
            try:
                while not self._left:
                    self._items.append(next(computed))
                    self._tell()
            except StopIteration:
                pass
            finally:
                computed.close()  # type: ignore[attr-defined]  # a generator, or a stream
        finally:
            lib.moebind_hooks_of_thread(ffi.NULL)

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:  # the event loop is closed: nobody is there any more
            self._left = True

    async def fetch(self) -> T:
        """The next item.

        Raises
        ------
        StopAsyncIteration
            If there is none; or whatever the computation raised.
        """
        while not self._left:
            if self._items:
                return self._items.popleft()
            if self._ended:
                if self._error is not None:
                    raise self._taken_error()
                break
            await self._news(lambda: bool(self._items))
        raise StopAsyncIteration

    async def ended(self) -> None:
        """Wait until the thread has given everything back."""
        while not self._ended:
            await self._news(lambda: False)

    async def _news(self, there: Callable[[], bool]) -> None:
        """Wait until the thread tells something, unless it is there or the thread has ended."""
        self._arrived.clear()
        if not there() and not self._ended:  # it may have told before
            await self._arrived.wait()

    def _taken_error(self) -> BaseException:
        """What the computation raised, which must not be kept: its traceback leads back here."""
        error, self._error = self._error, None
        assert error is not None  # noqa: S101
        return error

    def leave(self) -> None:
        """Let the thread end as soon as it can, and take no notice of what it has computed. Any thread may call it."""
        self._left = True
        self._error = None
        lib.moebind_hooks_abort(self._hooks.pointer)

    def join(self) -> None:
        """Wait for the thread itself."""
        if self._thread.is_alive():  # it was started, and is not of the process that this one was forked from
            self._thread.join()


#: Threads that compute; at the end of the interpreter, they must not be in the middle of something.
_running: WeakSet[Work[Any]] = WeakSet()


def _end() -> None:
    works = list(_running)
    for work in works:
        work.leave()
    for work in works:
        work.join()


atexit.register(_end)


async def in_thread(function: Callable[[], R]) -> R:
    """Call something that takes long in a thread of its own: asyncio's few threads are for others."""
    return await Work(lambda: (function() for _ in range(1)), lambda: None).fetch()


class AsyncStream(AsyncIterator[T]):
    """Something that is generated in a thread, as an asynchronous iterator.

    Parameters
    ----------
    enter
        Waits for its turn; gives what it works on, and what is to be called when it is over.
    make
        Called in the thread with what it works on: gives the iterator.
    """

    _work: Working[T] | None = None
    _entering = False
    _over = False

    def __init__(self, enter: Enter, make: Callable[[Any], Iterator[T]]) -> None:
        self._enter, self._make = enter, make

    if not TYPE_CHECKING:  # type checkers say it themselves

        def __iter__(self) -> NoReturn:
            raise TypeError(f"{type(self).__name__} is read with async for, or whole: {_WHOLE}")

        def __await__(self) -> NoReturn:
            raise TypeError(f"{type(self).__name__} is awaited whole: {_WHOLE}; or piece by piece: use async for")

    async def __anext__(self) -> T:
        if self._entering:
            raise RuntimeError("another task is waiting for the next piece of this generation; only one can")
        if self._over:
            raise StopAsyncIteration
        self._entering = True
        leave = None
        try:
            if self._work is None:
                where, called = await self._enter()
                leave = _Once(called)
                if self._over:  # it was closed meanwhile
                    raise StopAsyncIteration
                self._work = self._working(where, leave)
            return await self._work.fetch()
        except BaseException:  # also CancelledError
            self._go()
            if leave is not None and self._work is None:
                leave()
            raise
        finally:
            self._entering = False

    def _working(self, where: Any, leave: Leave) -> Working[T]:
        """Begin to compute; what is computed can be fetched there."""
        return Work(partial(self._make, where), leave)

    def _go(self) -> None:
        """Go away: whatever is computed for it is aborted."""
        self._over = True
        if self._work is not None:
            self._work.leave()

    async def aclose(self) -> None:
        """End it: the computation is aborted, and its context is free when this returns. Closing twice does nothing."""
        self._go()
        if self._work is not None:
            await self._work.ended()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._go()
