"""Readers of an engine: those that do not read, and those that go away, in whichever way."""

from __future__ import annotations

import asyncio
import gc
import itertools
import signal
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest
from chats import HELLO
from engines import EXACT, PROMPTS, alone, check, endless, wait_until
from generations import Gate
from leaving import WAYS_TO_LEAVE

from moebind import AbortedError, AsyncPieces, ClosedError, Engine, Model, Pieces, Sampler, TokenDataArray, lib
from moebind.context.deliveries import ToThread


@pytest.fixture
def engine(dense: Model) -> Iterator[Engine]:
    with Engine(dense, EXACT, prompt_chunk=16, n_ahead=4) as engine:
        yield engine
        check(engine)


# --- who does not read ---


def paused(engine: Engine) -> int:
    return sum(run.paused for run in engine._thread._open.values())


@pytest.mark.parametrize("n_ahead", [1, 2, 5])
def test_who_does_not_read_is_waited_for_and_nobody_else(dense: Model, n_ahead: int) -> None:
    [expected] = alone(dense, [[1, 7]], sampler=endless(dense), max_tokens=30)
    with Engine(dense, EXACT, n_ahead=n_ahead) as engine:
        slow = engine.generate([1, 7], sampler=endless(dense), max_tokens=30)
        wait_until(lambda: paused(engine) == 1)
        others = [engine.generate(prompt, max_tokens=8) for prompt in PROMPTS]
        for each, tokens in zip(others, alone(dense, PROMPTS), strict=True):
            assert each.complete().tokens == tokens
        assert slow._pieces._delivery.n_unread == n_ahead  # type: ignore[attr-defined]
        assert slow.complete().tokens == expected
        check(engine)


def test_who_does_not_read_gives_up_its_place(dense: Model) -> None:
    """And gets it again, however often, with the same text."""
    with Engine(dense, EXACT.with_n_seq_max(2), n_ahead=2) as engine:
        slow = [engine.generate(prompt, sampler=endless(dense), max_tokens=20) for prompt in PROMPTS[:3]]
        wait_until(lambda: paused(engine) == 3)  # in two sequences
        assert engine.generate([1, 9], max_tokens=3).complete().tokens == alone(dense, [[1, 9]], max_tokens=3)[0]
        for _ in range(20):
            for each in slow:
                next(each)
        tokens = [each.complete().tokens for each in slow]
        assert tokens == alone(dense, PROMPTS[:3], sampler=endless(dense), max_tokens=20)
        check(engine)


def test_who_awaits_nothing_is_waited_for(dense: Model, engine: Engine) -> None:
    async def main() -> None:
        slow = engine.agenerate([1, 7], sampler=endless(dense), max_tokens=30)
        tokens = [(await anext(slow)).token]
        while not paused(engine):
            await asyncio.sleep(0.001)
        assert len((await engine.agenerate([1, 9], max_tokens=5).complete()).tokens) > 0
        tokens += [piece.token async for piece in slow]
        assert [tuple(tokens)] == alone(dense, [[1, 7]], sampler=endless(dense), max_tokens=30)

    asyncio.run(main())


# --- who goes away ---


def closed(pieces: Pieces) -> None:
    pieces.close()
    pieces.close()
    with pytest.raises(StopIteration):
        next(pieces)


def left(pieces: Pieces) -> None:
    with pytest.raises(ZeroDivisionError), pieces:
        1 / 0  # noqa: B018


def closed_by_contextlib(pieces: Pieces) -> None:
    with closing(pieces):
        pass


def broken_off(pieces: Pieces) -> None:
    for _ in pieces:
        break


def collected(pieces: Pieces) -> None:
    pieces.around = pieces  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", [closed, left, closed_by_contextlib, broken_off, collected])
@pytest.mark.parametrize("n_read", [0, 2])
def test_who_goes_away_leaves_nothing(dense: Model, engine: Engine, way: Callable[[Pieces], None], n_read: int) -> None:
    other = engine.generate([1, 9], max_tokens=8)
    pieces = engine.generate([1, 7], sampler=endless(dense))
    waiting = [engine.generate([1, 7], sampler=endless(dense)) for _ in range(4)]
    for _ in range(n_read):
        next(pieces)
    for each in (pieces, *waiting):
        way(each)
    del pieces, waiting, each
    gc.collect()
    assert [other.complete().tokens] == alone(dense, [[1, 9]])
    check(engine)


def test_who_is_dropped_is_gone(dense: Model, engine: Engine) -> None:
    pieces = engine.generate([1, 7], sampler=endless(dense))
    dropped = weakref.ref(pieces)
    del pieces
    assert dropped() is None, "something keeps it"


def test_a_computation_for_nobody_is_stopped(dense: Model) -> None:
    """In the middle of the prompt; what is computed with another text is computed to its end."""
    computing, engines = threading.Event(), list[Engine]()

    def slow() -> bool:
        if not computing.is_set():
            computing.set()
            wait_until(lambda: engines and lib.moebind_hooks_aborted(engines[0]._thread._hooks.pointer))
        return False

    params = EXACT.with_n_ctx(3 * 512).with_n_ubatch(512).with_abort_callback(slow)
    with Engine(dense, params) as engine:
        engines.append(engine)
        prompt = engine.generate([1, *(3 + i % 250 for i in range(400))])
        computing.wait()
        prompt.close()  # which waits until its room is there again
        assert engine._context.kv_cache_seq_pos_max(0) == -1
        check(engine)


def test_ctrl_c_while_waiting(dense: Model, engine: Engine) -> None:
    gate = Gate(after=1)
    pieces = engine.generate([1, 7], sampler=endless(dense, gate_of(gate)))
    next(pieces)
    wait_until(gate.reached.is_set)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        wait_until(lambda: sys._current_frames()[main].f_code is ToThread.get.__code__)
        signal.pthread_kill(main, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        threading.Thread(target=interrupt).start()
        next(pieces)
    with pytest.raises(StopIteration):
        next(pieces)
    gate.open.set()
    check(engine)
    assert len(engine.generate([1, 7], max_tokens=2).complete().tokens) > 0


def gate_of(gate: Gate) -> object:
    from moebind import Sampler

    return Sampler.from_callable(gate)


# --- coroutines that go away ---


async def dropped(stream: AsyncPieces) -> None:
    pass


@pytest.mark.parametrize("way", [*WAYS_TO_LEAVE, dropped])
@pytest.mark.parametrize("n_read", [0, 2])
def test_tasks_that_go_away_leave_nothing(
    dense: Model, engine: Engine, way: Callable[[AsyncPieces], Awaitable[None]], n_read: int
) -> None:
    async def main() -> None:
        other = asyncio.ensure_future(engine.agenerate([1, 9], max_tokens=8).complete())
        streams = [engine.agenerate([1, 7], sampler=endless(dense)) for _ in range(3)]
        for stream in streams:
            for _ in range(n_read):
                await anext(stream)
        for stream in streams:
            await way(stream)
        streams.clear()
        del stream
        gc.collect()
        assert [(await other).tokens] == alone(dense, [[1, 9]])

    asyncio.run(main())
    check(engine)


def test_the_event_loop_ends_meanwhile(dense: Model, engine: Engine) -> None:
    kept = []

    async def main() -> None:
        kept.append(engine.agenerate([1, 7], sampler=endless(dense)))
        await anext(kept[0])

    asyncio.run(main())
    kept.clear()
    check(engine)


def test_one_task_at_a_time(dense: Model, engine: Engine) -> None:
    async def main() -> None:
        stream = engine.agenerate([1, 7], sampler=endless(dense))
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="only one can"):
            await anext(stream)
        await first
        await stream.aclose()

    asyncio.run(main())


def test_an_engine_is_kept_by_its_readers(dense: Model) -> None:
    pieces = Engine(dense, EXACT).generate([1, 9], max_tokens=8)
    gc.collect()
    assert [pieces.complete().tokens] == alone(dense, [[1, 9]])
    with pytest.warns(ResourceWarning, match="Engine .* never closed"):
        del pieces
        gc.collect()


def test_a_callback_cannot_wait_for_its_own_engine(dense: Model, engine: Engine) -> None:
    from moebind import Sampler

    nested = []

    def ask(_candidates: object) -> None:
        nested.append(engine.generate([1, 9], max_tokens=2))  # asking is possible, waiting is not
        nested[0].complete()

    with pytest.raises(RuntimeError, match="cannot wait"):
        engine.generate([1, 7], sampler=Sampler.chain([Sampler.from_callable(ask), Sampler.greedy()])).complete()
    del nested[:]


class Interrupted:
    """An inbox at which Ctrl-C comes before or after the first message."""

    def __init__(self, engine: Engine, after: bool) -> None:
        self._engine, self._inbox, self._after = engine, engine._thread._inbox, after
        engine._thread._inbox = self  # type: ignore[assignment]

    def put(self, message: Callable[[], None]) -> None:
        self._engine._thread._inbox = self._inbox
        if self._after:
            self._inbox.put(message)
        raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
def test_who_is_interrupted_while_asking_leaves_nothing(dense: Model, engine: Engine, after: bool) -> None:
    async def main() -> None:
        with pytest.raises(KeyboardInterrupt):
            await anext(engine.agenerate([1, 7], sampler=endless(dense)))

    engine.generate([1, 9], max_tokens=1).complete()  # its thread has its inbox
    Interrupted(engine, after)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([1, 7], sampler=endless(dense))
    gc.collect()
    check(engine)
    Interrupted(engine, after)
    asyncio.run(main())
    check(engine)


def test_one_thread_reads_and_another_closes(dense: Model, engine: Engine) -> None:
    """The one end of a text is for both, whichever gets it."""
    for _ in range(10):
        pieces, began, left = engine.generate([1, 7], sampler=endless(dense)), threading.Event(), threading.Event()

        def read(pieces: Pieces = pieces, began: threading.Event = began, left: threading.Event = left) -> None:
            for _piece in pieces:
                began.set()
            left.set()

        threading.Thread(target=read, daemon=True).start()
        began.wait()
        pieces.close()
        left.wait()


def test_several_threads_read_one_text(dense: Model, engine: Engine) -> None:
    pieces, taken = engine.generate([1, 7], sampler=endless(dense), max_tokens=40), list[int]()
    readers = [
        threading.Thread(target=lambda: taken.extend(piece.index for piece in pieces), daemon=True) for _ in range(3)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert sorted(taken) == list(range(40))


def test_closed_engines_end_their_readers(dense: Model) -> None:
    engine = Engine(dense, EXACT, n_ahead=3)
    pieces = engine.generate([1, 7], sampler=endless(dense))
    wait_until(lambda: paused(engine) == 1)
    waiting = [engine.generate([1, 7], sampler=endless(dense)) for _ in range(5)]
    engine.close()
    assert [next(pieces).index for _ in range(3)] == [0, 1, 2]  # what was written before
    with pytest.raises(ClosedError, match="closed"):
        next(pieces)
    for each in waiting:
        with pytest.raises(ClosedError, match="closed"):
            each.complete()


# --- what is raised keeps nothing ---


class Local:
    """Somebody's, in the frame that an exception has gone through."""


class Mine(Exception):
    pass


def raises_at(n: int) -> Sampler:
    """A sampler that raises at its n-th token."""
    tokens = itertools.count(1)

    def sample(candidates: TokenDataArray) -> None:
        if next(tokens) == n:
            raise Mine
        candidates.select(70)

    return Sampler.from_callable(sample)


def read(pieces: Iterable[object]) -> weakref.ref[Local]:
    """Read until it is raised; what has been a local variable there."""
    local = Local()
    try:
        for _ in pieces:
            pass
    except Mine:
        return weakref.ref(local)
    raise AssertionError("nothing was raised")


async def aread(pieces: AsyncIterable[object]) -> weakref.ref[Local]:
    local = Local()
    try:
        async for _ in pieces:
            pass
    except Mine:
        return weakref.ref(local)
    raise AssertionError("nothing was raised")


@contextmanager
def nothing_collected() -> Iterator[None]:
    """What is in cycles stays meanwhile."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


def becomes(true: Callable[[], bool]) -> bool:
    """Whether it does, if only the engine's thread gets on; what a cycle keeps does not go."""
    until = time.monotonic() + 60
    while not true() and time.monotonic() < until:
        time.sleep(0.002)
    return true()


@pytest.mark.parametrize("how", ["generate", "chat", "agenerate", "achat", "deltas", "adeltas"])
def test_what_is_raised_keeps_nothing_of_an_engines_reader(engine: Engine, how: str) -> None:
    options: dict[str, Any] = {"sampler": raises_at(3), "max_tokens": 9}
    chat: dict[str, Any] = {**options, "template": "chatml"}
    ways: dict[str, Callable[[], Any]] = {
        "generate": lambda: engine.generate([1, 7], **options),
        "chat": lambda: engine.chat(HELLO, **chat),
        "deltas": lambda: engine.chat(HELLO, **chat).deltas(),
        "agenerate": lambda: engine.agenerate([1, 7], **options),
        "achat": lambda: engine.achat(HELLO, **chat),
        "adeltas": lambda: engine.achat(HELLO, **chat).deltas(),
    }

    async def main() -> weakref.ref[Local]:
        return await aread(ways[how]())

    with nothing_collected():
        left = asyncio.run(main()) if how.startswith("a") else read(ways[how]())
        assert becomes(lambda: left() is None)


@pytest.mark.parametrize("how", ["generate", "generate_many", "agenerate", "deltas"])
def test_what_is_raised_keeps_nothing_of_a_contexts_reader(dense: Model, how: str) -> None:
    with dense.new_context(EXACT) as context:
        sampler = raises_at(3)

        async def main() -> weakref.ref[Local]:
            return await aread(context.agenerate([1, 7], sampler=sampler, max_tokens=9))

        ways: dict[str, Callable[[], weakref.ref[Local]]] = {
            "generate": lambda: read(context.generate([1, 7], sampler=sampler)),
            "generate_many": lambda: read(context.generate_many([[1, 7], [1, 8]], sampler=sampler)),
            "agenerate": lambda: asyncio.run(main()),
            "deltas": lambda: read(context.chat(HELLO, sampler=sampler, template="chatml").deltas()),
        }
        with nothing_collected():
            left = ways[how]()
            assert left() is None


def test_who_was_aborted_keeps_no_other_request(dense: Model, engine: Engine) -> None:
    """The second request is a local variable where the exception of the first went through."""

    def ask() -> None:
        first = engine.generate([1, 7], sampler=endless(dense))
        second = engine.generate([1, 8], sampler=endless(dense))
        engine.abort()
        for each in (first, second):
            with suppress(AbortedError):
                each.complete()
        third = engine.generate([1, 9], sampler=endless(dense))
        next(third)

    with nothing_collected():
        ask()
        assert becomes(lambda: not engine._thread.n_open)
