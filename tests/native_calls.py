"""What happens while native code runs, as the interpreter itself tells: no clock is looked at."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Seconds after which the interpreter takes its lock from a thread: so long that only giving it up lets others go on.
NEVER = 1000.0


@contextmanager
def profiled(name: str, call: Callable[[], object], ended: Callable[[bool], object]) -> Iterator[None]:
    """Be told of calls of a native function in this thread: right before each, and whether it ended by raising.

    The function raises where an exception comes out of it. One that is noticed after it has returned is none of these.
    """

    def look(_frame: FrameType, event: str, function: Any) -> None:
        if event.startswith("c_") and getattr(function, "__name__", None) == name:
            call() if event == "c_call" else ended(event == "c_exception")

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)


@contextmanager
def only_by_giving_up() -> Iterator[None]:
    """Let other threads go on only while this one has given the interpreter's lock up."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(NEVER)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def lock_given_up(name: str, work: Callable[[], object], tries: int = 20) -> bool:
    """Whether another thread gets on while a native function runs; ``work`` calls it."""
    counted, done, seen = [0], threading.Event(), list[int]()

    def count() -> None:
        while not done.wait(1e-4):
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        with only_by_giving_up(), profiled(name, lambda: seen.append(counted[0]), lambda _: seen.append(counted[0])):
            for _ in range(tries):  # who else is here may keep the other thread from the processor
                seen.clear()
                work()
                assert seen, f"{name} was not called"
                if seen[1] > seen[0]:
                    return True
    finally:
        done.set()
        thread.join()
    return False


def stopped_by_ctrl_c(name: str, work: Callable[[], object], tries: int = 20) -> bool:
    """Whether Ctrl-C ends a native function in the middle; ``work`` calls it, and is to take a while there."""
    raised: list[bool] = []
    for _ in range(tries):  # the signal may come too late, if the processor is busy
        running = threading.Event()

        def interrupt(running: threading.Event = running) -> None:
            running.wait()
            signal.raise_signal(signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        raised.clear()
        try:
            # The other thread sends it once the native function has given the interpreter's lock up.
            with only_by_giving_up(), profiled(name, running.set, raised.append):
                work()
                running.set()
                thread.join()
        except KeyboardInterrupt:
            pass
        finally:
            running.set()
            thread.join()
        if any(raised):
            return True
    return False
