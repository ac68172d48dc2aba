"""Threads that compute for a coroutine, whatever it is that they compute."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moebind.context.asynchronous import AsyncStream, Work, in_thread


def stream_of(make: Callable[[], Iterator[Any]], left: list[str] | None = None) -> AsyncStream[Any]:
    async def enter() -> tuple[None, Callable[[], None]]:
        return None, lambda: None if left is None else left.append("left")

    return AsyncStream(enter, lambda _: make())


def test_items_come_in_their_order() -> None:
    async def main() -> list[int]:
        return [each async for each in stream_of(lambda: (n for n in range(1000)))]

    assert asyncio.run(main()) == [*range(1000)]


def raising(error: type[BaseException]) -> Iterator[int]:
    raise error


def test_what_is_raised_is_raised_once() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise LookupError("not today")

    async def main() -> None:
        stream = stream_of(failing)
        assert await anext(stream) == 1
        with pytest.raises(LookupError, match="not today"):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        for error in (KeyboardInterrupt, SystemExit, MemoryError):
            with pytest.raises(error):
                await anext(stream_of(lambda error=error: raising(error)))  # type: ignore[misc]

    asyncio.run(main())


def test_errors_are_not_kept() -> None:
    class Failure(Exception):
        pass

    failure: list[weakref.ref[Failure]] = []

    def failing() -> Iterator[int]:
        error = Failure()
        failure.append(weakref.ref(error))
        raise error
        yield 1

    async def main() -> None:
        stream = stream_of(failing)
        with pytest.raises(Failure):
            await anext(stream)

    asyncio.run(main())
    gc.collect()
    assert failure[0]() is None


def test_the_iterator_is_closed_before_its_place_is_free() -> None:
    order: list[str] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            order.append("closed")

    async def main() -> None:
        for _ in range(20):
            stream = stream_of(endless, order)
            assert await anext(stream) == 1
            await stream.aclose()
            assert order == ["closed", "left"]
            order.clear()

    asyncio.run(main())


def test_a_turn_that_comes_too_late_is_given_back() -> None:
    async def main() -> None:
        come, left = asyncio.Event(), []

        async def enter() -> tuple[None, Callable[[], None]]:
            await come.wait()
            return None, lambda: left.append(1)

        stream: AsyncStream[int] = AsyncStream(enter, lambda _: iter([]))
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        come.set()
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert left == [1]

    asyncio.run(main())


def test_no_thread_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        left: list[str] = []
        with pytest.raises(RuntimeError, match="can't start"):
            await anext(stream_of(lambda: iter([]), left))
        assert left == ["left"]

    monkeypatch.setattr(threading.Thread, "start", refuse)
    asyncio.run(main())


def test_an_event_loop_that_ends_ends_the_thread() -> None:
    begun = threading.Event()
    ended = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                begun.set()
                yield 1
        finally:
            ended.set()

    loop = asyncio.new_event_loop()
    stream = stream_of(endless)
    loop.run_until_complete(stream.__anext__())
    loop.close()
    ended.wait()
    del stream


def test_two_wait_for_the_end() -> None:
    go = threading.Event()

    def waiting() -> Iterator[int]:
        go.wait()
        yield 1

    async def main() -> None:
        stream = stream_of(waiting)
        fetching = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        closing = [asyncio.ensure_future(stream.aclose()) for _ in range(2)]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*closing)
        with pytest.raises(StopAsyncIteration):
            await fetching

    asyncio.run(main())


def test_in_thread() -> None:
    async def main() -> None:
        assert await in_thread(lambda: threading.current_thread().name) == "moebind generation"
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)

    asyncio.run(main())


def test_threads_are_asked_to_end_with_the_interpreter() -> None:
    from moebind.context import asynchronous

    async def main() -> None:
        work = Work(lambda: (n for n in iter(int, 1)), lambda: None)
        assert await work.fetch() == 0
        assert work in asynchronous._running
        asynchronous._end()
        assert not work._thread.is_alive()
        with pytest.raises(StopAsyncIteration):
            await work.fetch()

    asyncio.run(main())
