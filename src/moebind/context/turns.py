"""Taking turns: coroutines wait in a queue for what one of them uses at a time, without a thread for each."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from moebind._core.fork import new_in_child

__all__ = ["Turns"]

T = TypeVar("T")


class _Place(Generic[T]):
    """A place in the queue, of a coroutine in some event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.called: asyncio.Future[None] = self.loop.create_future()
        #: What it was given, in a list, so that None can be given too.
        self.given: list[T] = []

    def call(self) -> None:
        """Wake the coroutine, in its event loop."""
        if not self.called.done():
            self.called.set_result(None)


class Turns(Generic[T]):
    """Things of which each is used by one at a time. Who comes first gets one first.

    Any thread may give one back, and coroutines of several event loops may wait. A coroutine that is cancelled while it
    waits loses its place, and what it was given in that very moment goes to the next one.
    """

    def __init__(self, free: Iterable[T]) -> None:
        # Reentrant: a finalizer that gives something back may run wherever Python collects.
        self._lock = new_in_child(threading.RLock())
        self._free = deque(free)
        self._waiting: deque[_Place[T]] = deque()

    @property
    def n_free(self) -> int:
        """How many are free."""
        return len(self._free)

    @property
    def n_waiting(self) -> int:
        """How many coroutines wait."""
        return len(self._waiting)

    async def take(self) -> T:
        """Wait for one that is free, and take it."""
        with self._lock:
            if self._free:
                return self._free.popleft()
            place: _Place[T] = _Place()
            self._waiting.append(place)
        try:
            await place.called
        except BaseException:
            # Cancelled, or collected with an event loop that has ended.
            with self._lock:
                if not place.given and place in self._waiting:  # it is not there if its event loop was found closed
                    self._waiting.remove(place)
            for thing in place.given:
                self.give(thing)
            raise
        return place.given[0]

    def give(self, thing: T) -> None:
        """Give one back: to who has waited longest, if anybody waits."""
        with self._lock:
            while self._waiting:
                place = self._waiting.popleft()
                place.given.append(thing)
                try:
                    place.loop.call_soon_threadsafe(place.call)
                except RuntimeError:  # its event loop is closed
                    place.given.clear()
                    continue
                return
            self._free.append(thing)
