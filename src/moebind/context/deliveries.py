"""How what an engine writes gets to its readers: threads, and coroutines. Each way is a queue that has an end.

A reader says what it wants by messages to the engine's thread: that it reads again, or goes away. Nothing here waits
for a lock, so that it can be done wherever Python collects a reader that was dropped.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

from moebind.context.pieces import Piece
from moebind.context.schedule import Run
from moebind.errors import ClosedError

__all__ = ["Asked", "Delivery", "Reader", "ToTask", "ToThread", "Worker"]


class Worker(Protocol):
    """The thread of an engine, as readers know it."""

    #: Why it computes nothing any more; None: it does.
    over: str | None

    def resume(self, run: Asked) -> None:
        """Have a text go on that was paused."""

    def cancel(self, run: Asked) -> None:
        """Have a text forgotten."""

    def wake(self, task: ToTask) -> None:
        """Have a coroutine woken with all others, once the batch is delivered. Called in the engine's thread."""

    def must_be_elsewhere(self) -> None:
        """Raise if this is the engine's thread, which cannot wait for itself."""


@dataclass(eq=False)
class Asked(Run):
    """A text that an engine was asked for."""

    #: Where its pieces go, once it was asked for.
    delivery: Delivery | None = None
    #: Whether its reader went away.
    cancelled: bool = False


class _End:
    """The last that is delivered: nothing more comes, because of an error, or without one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Delivery(ABC):
    """The pieces of a text, from the engine's thread to their reader.

    Parameters
    ----------
    worker
        The thread.
    run
        The text.
    n_ahead
        With so many pieces that are not read, the text is paused, until there are half as many.
    """

    def __init__(self, worker: Worker, run: Asked, n_ahead: int) -> None:
        self._worker, self._run, self._n_ahead = worker, run, n_ahead
        self._paused = False
        run.delivery = self

    @property
    @abstractmethod
    def n_unread(self) -> int:
        """How many pieces wait for the reader."""

    # --- the engine's thread ---

    @abstractmethod
    def put(self, pieces: list[Piece]) -> None:
        """Deliver these."""

    @abstractmethod
    def end(self, error: BaseException | None) -> None:
        """Deliver nothing more; the reader raises the error, if there is one, behind the last piece."""

    def pauses(self) -> bool:
        """Whether the text is to be paused now. If so, the reader resumes it."""
        self._paused = self.n_unread >= self._n_ahead
        if self._paused and self._is_low():  # it has read in that moment, and did not know that it is waited for
            self._paused = False
        return self._paused

    # --- its reader ---

    def _is_low(self) -> bool:
        return self.n_unread <= self._n_ahead // 2

    def _took(self) -> None:
        """A piece was taken."""
        if self._paused and self._is_low():
            self._paused = False
            self._worker.resume(self._run)

    def leave(self) -> None:
        """Want no more: the text is cancelled. Any thread may call it, and twice."""
        if not self._run.cancelled:
            self._run.cancelled = True
            self._worker.cancel(self._run)


class ToThread(Delivery):
    """Delivers to whoever waits in a thread."""

    def __init__(self, worker: Worker, run: Asked, n_ahead: int) -> None:
        self._items: SimpleQueue[Piece | _End] = SimpleQueue()
        super().__init__(worker, run, n_ahead)

    @property
    def n_unread(self) -> int:
        """How many pieces wait for the reader."""
        return self._items.qsize()

    def put(self, pieces: list[Piece]) -> None:
        """Deliver these."""
        for piece in pieces:
            self._items.put(piece)

    def end(self, error: BaseException | None) -> None:
        """Deliver nothing more."""
        self._items.put(_End(error))

    def get(self) -> Piece | _End:
        """What comes next; waits for it.

        Raises
        ------
        ClosedError
            If nothing comes any more, not even an end: in the child of a fork.
        """
        try:
            item = self._items.get_nowait()
        except Empty:
            self._worker.must_be_elsewhere()
            if self._worker.over is not None and self._items.empty():
                raise ClosedError(self._worker.over) from None
            item = self._items.get()
        if isinstance(item, _End):
            self._items.put(item)  # for another thread, which reads or closes
        self._took()
        return item


class Reader(Iterator[Piece]):
    """What is written for a request, piece by piece. The request is cancelled when it is closed, or dropped.

    Parameters
    ----------
    delivery
        Where the pieces come from.
    keeps
        What is not to be collected meanwhile.
    """

    def __init__(self, delivery: ToThread, keeps: object) -> None:
        self._delivery, self._keeps = delivery, keeps
        self._over = False

    def __next__(self) -> Piece:
        if self._over:
            raise StopIteration
        try:
            item = self._delivery.get()
        except BaseException:  # also Ctrl-C
            self._over = True
            self._delivery.leave()
            raise
        if isinstance(item, Piece):
            return item
        self._over = True
        error, item.error = item.error, None
        try:
            if error is not None:
                raise error
        finally:  # its traceback leads back here, and to all that its reader has
            del error
        raise StopIteration

    def close(self) -> None:
        """Cancel what is not written yet, and wait until its room is given back."""
        if self._over:
            return
        self._over = True
        self._delivery.leave()
        try:
            while isinstance(self._delivery.get(), Piece):
                pass
        except (ClosedError, RuntimeError):  # nobody is there to wait for, or it is called by whom it would wait for
            pass

    def __del__(self) -> None:
        if not self._over:
            self._delivery.leave()


class ToTask(Delivery):
    """Delivers to a coroutine; as the work of an ``AsyncStream``, it is also its reader."""

    def __init__(self, worker: Worker, run: Asked, n_ahead: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._pieces: deque[Piece] = deque()
        self._end: _End | None = None
        #: Whether the coroutine waits; otherwise it is not told, which would take a system call for each piece.
        self._waits = False
        super().__init__(worker, run, n_ahead)

    @property
    def n_unread(self) -> int:
        """How many pieces wait for the reader."""
        return len(self._pieces)

    def put(self, pieces: list[Piece]) -> None:
        """Deliver these."""
        self._pieces.extend(pieces)
        self._tell()

    def end(self, error: BaseException | None) -> None:
        """Deliver nothing more."""
        self._end = _End(error)
        self._tell()

    def _tell(self) -> None:
        if self._waits:
            self._waits = False
            self._worker.wake(self)

    @staticmethod
    def wake_all(tasks: list[ToTask]) -> None:
        """Wake these coroutines, each event loop by one system call. Called in the engine's thread."""
        by_loop: dict[asyncio.AbstractEventLoop, list[ToTask]] = {}
        for task in tasks:
            by_loop.setdefault(task._loop, []).append(task)
        for loop, those in by_loop.items():
            try:
                loop.call_soon_threadsafe(ToTask._arrive, those)
            except RuntimeError:  # the event loop is closed: nobody is there any more
                for task in those:
                    task.leave()

    @staticmethod
    def _arrive(tasks: list[ToTask]) -> None:
        for task in tasks:
            task._arrived.set()

    async def fetch(self) -> Piece:
        """The next piece.

        Raises
        ------
        StopAsyncIteration
            If there is none; or whatever ended the text.
        """
        while not self._run.cancelled:
            if self._pieces:
                piece = self._pieces.popleft()
                self._took()
                return piece
            if self._end is not None:
                error, self._end.error = self._end.error, None
                try:
                    if error is not None:
                        raise error
                finally:  # as above
                    del error
                break
            await self._news(lambda: bool(self._pieces))
        raise StopAsyncIteration

    async def ended(self) -> None:
        """Wait until its room is given back."""
        while self._end is None and self._worker.over is None:
            await self._news(lambda: False)

    async def _news(self, there: Callable[[], bool]) -> None:
        """Wait until something was told, unless it is there already."""
        self._arrived.clear()
        self._waits = True
        if there() or self._end is not None:
            return
        if self._worker.over is not None:
            raise ClosedError(self._worker.over)
        await self._arrived.wait()
