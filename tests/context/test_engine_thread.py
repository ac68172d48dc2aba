"""The thread of an engine: what fails, and whom it concerns; aborts, forks, threads that ask at once, and the end."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import processes
import pytest
from engines import EXACT, PROMPTS, alone, check, endless, wait_until
from generations import Gate

from conftest import CPU
from moebind import AbortedError, ClosedError, Context, Engine, LoraAdapter, LoraError, Model, Sampler, lib
from moebind.context import engine_thread
from moebind.context.schedule import Run


@pytest.fixture
def engine(dense: Model) -> Iterator[Engine]:
    with Engine(dense, EXACT, prompt_chunk=16) as engine:
        yield engine
        check(engine)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "moebind engine"]


class OwnError(Exception):
    """Of a callback's; it takes more than a message."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class NotEvenAnException(BaseException):
    """Like SystemExit."""


# --- what fails ---


@pytest.mark.parametrize("kind", [OwnError(1, 2), NotEvenAnException(), KeyboardInterrupt(), StopIteration()])
def test_a_failing_sampler_ends_its_own_text(dense: Model, engine: Engine, kind: BaseException) -> None:
    n_called = 0

    def fail(_candidates: object) -> None:
        nonlocal n_called
        n_called += 1
        if n_called == 3:
            raise kind

    others = [engine.generate(prompt, max_tokens=8) for prompt in PROMPTS]
    broken = engine.generate([1, 7], sampler=endless(dense, Sampler.from_callable(fail)))
    pieces = [next(broken), next(broken)]
    with pytest.raises(type(kind)):
        next(broken)
    assert [piece.index for piece in pieces] == [0, 1]
    assert list(broken) == []
    assert [each.complete().tokens for each in others] == alone(dense, PROMPTS)
    assert n_called == 3


def test_a_failing_computation_ends_those_in_it(dense: Model) -> None:
    fails = threading.Event()

    def asked() -> bool:
        if fails.is_set():
            raise OwnError(1, 2)
        return False

    with Engine(dense, EXACT.with_abort_callback(asked)) as engine:
        gate = Gate()
        running = [engine.generate([1, 7], sampler=endless(dense)) for _ in range(2)]
        held = engine.generate([1, 7], sampler=gate.sampler())
        wait_until(gate.reached.is_set)
        fails.set()
        gate.open.set()
        for each in (*running, held):
            with pytest.raises(OwnError, match="1 and 2"):
                each.complete()
        fails.clear()
        assert [engine.generate([1, 9], max_tokens=8).complete().tokens] == alone(dense, [[1, 9]])
        check(engine)


def test_an_abort_callback_that_says_stop(dense: Model) -> None:
    stops = threading.Event()
    with Engine(dense, EXACT.with_abort_callback(stops.is_set)) as engine:
        running = [engine.generate([1, 7], sampler=endless(dense)) for _ in range(2)]
        for each in running:
            next(each)
        stops.set()
        for each in running:
            with pytest.raises(AbortedError):
                each.complete()
        stops.clear()
        assert [engine.generate([1, 9], max_tokens=8).complete().tokens] == alone(dense, [[1, 9]])
        check(engine)


def test_adapters_that_cannot_be_used(moe: Model, adapter: LoraAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    n_refused = 0

    def refuse(*_: object) -> None:
        nonlocal n_refused
        n_refused += 1
        raise LoraError("no memory")

    monkeypatch.setattr(Context, "_use", refuse)
    with Engine(moe, EXACT) as engine:
        before = engine.generate([1, 9], max_tokens=8)
        with_it = [engine.generate([1, 7], adapters={adapter: 1.0}) for _ in range(2)]
        after = engine.generate([1, 9], max_tokens=8)
        for each in with_it:
            with pytest.raises(LoraError, match="no memory"):
                each.complete()
        assert [before.complete().tokens, after.complete().tokens] == alone(moe, [[1, 9]] * 2)
        assert n_refused in {1, 2}  # as they come
        check(engine)


def test_an_engine_that_fails_says_why(dense: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(dense, EXACT) as engine:

        def fail() -> list[Run]:
            raise OwnError(1, 2)

        monkeypatch.setattr(engine._thread._steps, "fill", fail)
        with pytest.raises(OwnError, match="1 and 2"):
            engine.generate([1, 9]).complete()
        wait_until(lambda: engine.closed)
        with pytest.raises(ClosedError, match="ended by OwnError: 1 and 2"):
            engine.generate([1, 9])


def test_abort(dense: Model, engine: Engine) -> None:
    for _ in range(5):
        running = [engine.generate([1, 7], sampler=endless(dense)) for _ in range(6)]
        next(running[0])
        engine.abort()
        for each in running:
            with pytest.raises(AbortedError, match="told to abort"):
                each.complete()
        assert [engine.generate([1, 9], max_tokens=8).complete().tokens] == alone(dense, [[1, 9]])


@pytest.mark.parametrize("shape", [{}, {"arch": "mamba"}, {"arch": "granite_swa", "n_expert": 4}])
def test_computations_that_are_stopped_for_nothing(tiny_path: Callable[..., Path], shape: dict[str, object]) -> None:
    """As when a reader goes away while the batch that it is in just ends: what is computed then is done again."""
    with Model.load_from_file(tiny_path(**shape), CPU) as model:
        prompts = [[1, *(3 + (i * k) % 280 for i in range(60))] for k in (1, 3, 5)]
        expected = alone(model, prompts, max_tokens=30)
        n_asked, disturbed = 0, list[Engine]()

        def disturb() -> bool:
            nonlocal n_asked
            n_asked += 1
            if n_asked % 2 and n_asked < 40:
                for engine in disturbed:
                    lib.moebind_hooks_abort(engine._thread._hooks.pointer)
            return False

        params = EXACT.with_swa_full(False).with_abort_callback(disturb)
        with Engine(model, params, prompt_chunk=16) as engine:
            disturbed.append(engine)
            asked = [engine.generate(prompt, max_tokens=30) for prompt in prompts]
            assert [each.complete().tokens for each in asked] == expected
            assert n_asked > 1
            check(engine)
            disturbed.clear()


# --- several threads ---


def test_threads_that_ask_at_once(dense: Model, engine: Engine) -> None:
    expected = alone(dense, PROMPTS)
    wrong: list[object] = []

    def ask(first: int) -> None:
        for n in range(6):
            at = (first + n) % len(PROMPTS)
            pieces = engine.generate(PROMPTS[at], max_tokens=8, priority=n % 2)
            if n % 3 == 2:
                next(pieces)
                pieces.close()
            elif pieces.complete().tokens != expected[at]:
                wrong.append(at)

    asking = [threading.Thread(target=ask, args=(first,)) for first in range(8)]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert not wrong


# --- the end ---


def test_closing_from_another_thread(dense: Model) -> None:
    gate = Gate(after=1)
    engine = Engine(dense, EXACT)
    pieces = engine.generate([1, 7], sampler=gate.sampler())
    wait_until(gate.reached.is_set)
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait_until(lambda: engine._thread._stopping)
    gate.open.set()
    with pytest.raises(ClosedError, match="closed"):
        pieces.complete()
    closing.join()
    assert not threads()


def test_closing_from_its_own_callback(dense: Model) -> None:
    engine = Engine(dense, EXACT)
    close = Sampler.chain([Sampler.from_callable(lambda _: engine.close()), Sampler.greedy()])
    with pytest.raises(ClosedError):
        list(engine.generate([1, 7], sampler=close, max_tokens=50))
    engine.close()
    assert not threads()


def test_closing_the_model(tiny_path: Callable[..., Path]) -> None:
    model = Model.load_from_file(tiny_path(), CPU)
    engine = Engine(model, EXACT, n_ahead=2)
    pieces = engine.generate([1, 7], sampler=endless(model))
    next(pieces)
    model.close()
    with pytest.raises(ClosedError, match="^this Engine cannot be used: its model was closed$"):
        pieces.complete()
    with pytest.raises(ClosedError, match="^this Engine cannot be used: its model was closed$"):
        engine.generate([1, 7])
    engine.close()
    assert not threads()


def test_asynchronous_context_managers(dense: Model) -> None:
    async def main() -> None:
        async with Engine(dense, EXACT) as engine:
            pieces = engine.agenerate([1, 7], sampler=endless(dense))
            await anext(pieces)
        with pytest.raises(ClosedError, match="closed"):
            await pieces.complete()
        with pytest.raises(ClosedError, match="closed"):
            async with engine:
                pass

    asyncio.run(main())
    assert not threads()


def test_one_that_is_dropped(dense: Model) -> None:
    engine = Engine(dense, EXACT)
    engine.around = engine  # type: ignore[attr-defined]
    thread = engine._thread._thread
    with pytest.warns(ResourceWarning, match=r"<Engine of .*> was never closed"):
        del engine
        gc.collect()
    thread.join()


def test_a_fork(dense: Model) -> None:
    with Engine(dense, EXACT) as engine:
        gate = Gate(after=2)
        pieces = engine.generate([1, 7], sampler=endless(dense, Sampler.from_callable(gate)), max_tokens=6)
        wait_until(gate.reached.is_set)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
            child = os.fork()
        if child == 0:
            code = 1
            try:
                code = fork_outcome(engine, pieces)
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        gate.open.set()
        assert [pieces.complete().tokens] == alone(dense, [[1, 7]], sampler=endless(dense), max_tokens=6)
        check(engine)


def fork_outcome(engine: Engine, pieces: Iterator[object]) -> int:
    """7 if everything says that it is the parent's, and nothing hangs."""
    try:
        list(pieces)
        return 2
    except ClosedError as error:
        if "forked" not in str(error):
            return 3
    try:
        engine.generate([1])
        return 4
    except ClosedError as error:
        if "forked" not in str(error):
            return 5
    engine.close()
    engine_thread._end_all()
    return 7


SCRIPT = """
from moebind import Engine
model = Model.load_from_file(path, cpu)
engine = Engine(model, ContextParams(n_ctx=512, n_seq_max=2, n_threads=1, n_threads_batch=1))
endless = Sampler.chain([Sampler.logit_bias({model.token_eos: -float("inf")}), Sampler.dist(1)])
kept = [engine.generate([1, 7], sampler=endless) for _ in range(3)]
next(kept[0])
"""


@pytest.mark.parametrize("end", ["", "del engine", "kept.clear()", "del engine, kept", "sys.exit(0)"])
def test_the_interpreter_ends_meanwhile(tiny_path: Callable[..., Path], end: str) -> None:
    assert processes.run(SCRIPT + end, tiny_path()) == ""


def test_a_daemon_thread_waits_at_the_end(tiny_path: Callable[..., Path]) -> None:
    waits = """
threading.Thread(target=lambda: kept[0].complete(), daemon=True).start()
threading.Thread(target=lambda: list(engine.generate([1], sampler=endless)), daemon=True).start()
import time
time.sleep(0.1)
"""
    command = [sys.executable, "-W", "ignore", "-c", processes.HEAD + SCRIPT + waits, str(tiny_path())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr  # what the threads raise at the end may be printed


def test_to_be_told_to_end_is_not_missed(dense: Model) -> None:
    """Whenever it comes: here between a look whether it is to end, and the messages."""
    engine = Engine(dense, EXACT)
    thread, inbox = engine._thread, engine._thread._inbox
    inbox.put(lambda: inbox.put(thread.stop))
    thread._thread.join(60)
    ended = not thread._thread.is_alive()
    engine.close()
    assert ended
