"""Who goes away from agenerate, in whichever way, leaves nothing behind and stops nobody else."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from engines import never_ends
from generations import Gate, gone
from leaving import WAYS_TO_LEAVE

from conftest import SMALL
from moebind import AbortedError, AsyncPieces, ClosedError, Context, Model, Sampler
from moebind.context import asynchronous

PROMPT = [1, 7, 8]


@pytest.fixture
def two(dense: Model) -> Iterator[Context]:
    with dense.new_context(SMALL.with_n_seq_max(2).with_n_ctx(1024)) as context:
        yield context


@pytest.mark.parametrize("way", WAYS_TO_LEAVE)
def test_who_goes_away_leaves_nothing(two: Context, way: Callable[[AsyncPieces], Awaitable[None]]) -> None:
    gate = Gate()
    expected = [piece.token for piece in two.generate([1, 5], max_tokens=5, seq_id=1)]

    async def main() -> None:
        stream = two.agenerate(PROMPT, sampler=gate.sampler())
        beginning = asyncio.ensure_future(anext(stream))
        await gate.is_reached()
        other = asyncio.ensure_future(two.agenerate([1, 5], max_tokens=5).complete())
        beginning.cancel()
        going = asyncio.ensure_future(way(two.agenerate([1, 9])))  # one that has not begun
        with pytest.raises(asyncio.CancelledError):
            await beginning
        await going
        gate.open.set()
        await stream.aclose()
        assert list((await other).tokens) == expected
        assert gate.n_tokens == 1
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(main())
    gone()


def test_who_is_dropped_is_aborted(two: Context) -> None:
    gate = Gate(after=1)

    async def main() -> None:
        stream = two.agenerate(PROMPT, sampler=gate.sampler())
        await anext(stream)
        await gate.is_reached()
        dropped = weakref.ref(stream)
        del stream
        assert dropped() is None, "something keeps it"
        gate.open.set()
        assert len((await two.agenerate(PROMPT, max_tokens=2).complete()).tokens) == 2

    asyncio.run(main())
    gone()
    assert gate.n_tokens == 2


def test_breaking_out_of_the_loop(two: Context) -> None:
    async def main() -> None:
        for _ in range(20):
            async for piece in two.agenerate(PROMPT):
                if piece.index == 2:
                    break
        assert len((await two.agenerate(PROMPT, max_tokens=3).complete()).tokens) == 3

    asyncio.run(main())
    gone()


def test_a_generator_around_it_that_is_dropped(two: Context) -> None:
    """As frameworks drop it: asyncio closes it when it is collected."""
    ended = []

    async def text() -> AsyncIterator[str]:
        try:
            async with two.agenerate(PROMPT) as pieces:
                async for piece in pieces:
                    yield piece.text
        finally:
            ended.append(True)

    async def main() -> None:
        async for _ in text():
            break
        gc.collect()
        assert len((await two.agenerate(PROMPT, max_tokens=3).complete()).tokens) == 3
        while not ended:
            await asyncio.sleep(0.001)

    asyncio.run(main())
    gone()


class Slow:
    """An abort callback that makes computing slow, and counts how often it is asked."""

    def __init__(self) -> None:
        self.n_asked, self.computing = 0, threading.Event()

    def __call__(self) -> bool:
        self.n_asked += 1
        if self.computing.is_set():
            time.sleep(0.003)
        return False


def test_a_computation_is_stopped_in_its_middle_and_no_other(dense: Model) -> None:
    slow = Slow()
    with dense.new_context(SMALL.with_n_seq_max(2).with_abort_callback(slow)) as context:
        context.generate(PROMPT, max_tokens=3).complete()

        async def main() -> None:
            asked = slow.n_asked
            slow.computing.set()
            stream = context.agenerate([1] * 60)
            beginning = asyncio.ensure_future(anext(stream))
            while slow.n_asked < asked + 5:  # in the middle of the prompt
                await asyncio.sleep(0.001)
            beginning.cancel()
            await asyncio.wait([beginning])
            await stream.aclose()
            at_most = slow.n_asked
            slow.computing.clear()
            # Nothing of what was asked for the one stops the other, in whichever sequence.
            for seq in (0, 1):
                assert len((await context.agenerate(PROMPT, max_tokens=4, seq_id=seq).complete()).tokens) == 4
            assert slow.n_asked >= at_most
            assert context.kv_cache_seq_pos_max(0) < 60

        asyncio.run(main())
    gone()


def test_aborts_hit_nobody_else(two: Context) -> None:
    """Clients that go away at any moment, beside others in the other sequence and later in the same."""
    expected = [piece.token for piece in two.generate(PROMPT, max_tokens=30)]

    async def main() -> None:
        async def leaving() -> None:
            for after in range(40):
                async with two.agenerate(PROMPT) as pieces:
                    for _ in range(after % 7):
                        await anext(pieces)
                    await asyncio.sleep(after % 3 / 2000)

        async def staying() -> None:
            for _ in range(25):
                completion = await two.agenerate(PROMPT, max_tokens=30, seq_id=1).complete()
                assert list(completion.tokens) == expected

        await asyncio.gather(leaving(), leaving(), staying())

    asyncio.run(main())
    gone()


def test_abort_is_told(two: Context) -> None:
    gate = Gate()

    async def main() -> None:
        stream = two.agenerate(PROMPT, sampler=gate.sampler())
        beginning = asyncio.ensure_future(anext(stream))
        await gate.is_reached()
        two.abort()
        gate.open.set()
        assert (await beginning).index == 0
        with pytest.raises(AbortedError):
            await stream.complete()
        assert len((await two.agenerate(PROMPT, max_tokens=2).complete()).tokens) == 2

    asyncio.run(main())


def test_ctrl_c(two: Context) -> None:
    """asyncio cancels what runs, or raises in the middle of it."""

    async def main() -> None:
        sampler = Sampler.chain([never_ends(two.model), Sampler.temp(5.0), Sampler.dist()])
        async with two.agenerate(PROMPT, sampler=sampler) as pieces:
            async for piece in pieces:
                if piece.index == 2:
                    signal.raise_signal(signal.SIGINT)

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
        assert asyncio.run(two.agenerate(PROMPT, max_tokens=2).complete()).usage.generated_tokens == 2
    gone()


def test_the_child_of_a_fork_waits_for_none(two: Context) -> None:
    gate = Gate()

    async def main() -> None:
        stream = two.agenerate(PROMPT, sampler=gate.sampler(), max_tokens=3)
        beginning = asyncio.ensure_future(anext(stream))
        await gate.is_reached()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
            child = os.fork()
        if child == 0:
            asynchronous._end()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        gate.open.set()
        assert (await beginning).index == 0
        assert len((await stream.complete()).tokens) == 3

    asyncio.run(main())


def test_closing_the_context_meanwhile(dense: Model) -> None:
    context = dense.new_context(SMALL)
    gate = Gate()

    async def main() -> None:
        stream = context.agenerate(PROMPT, sampler=gate.sampler())
        beginning = asyncio.ensure_future(anext(stream))
        await gate.is_reached()
        waiting = asyncio.ensure_future(context.agenerate(PROMPT).complete())
        closing = threading.Thread(target=context.close)  # which waits for the call that runs
        closing.start()
        gate.open.set()
        with pytest.raises(ClosedError):
            await beginning
            await stream.complete()
        with pytest.raises(ClosedError):
            await waiting
        closing.join()

    asyncio.run(main())
    gone()


def test_generate_takes_over(two: Context) -> None:
    gate = Gate(after=1)

    async def main() -> None:
        stream = two.agenerate(PROMPT, sampler=gate.sampler())
        await anext(stream)
        await gate.is_reached()
        # It waits for the sampler, which holds the context.
        taking = threading.Thread(target=lambda: two.generate(PROMPT, max_tokens=1).complete())
        taking.start()
        gate.open.set()
        taking.join()
        with pytest.raises(ClosedError, match="took over"):
            await stream.complete()

    asyncio.run(main())


# --- the end ---

SCRIPT = """
import asyncio, sys
from moebind import ContextParams, Model, ModelParams, Sampler
model = Model.load_from_file(sys.argv[1], ModelParams(n_gpu_layers=0, devices=()))
context = model.new_context(ContextParams(n_ctx=512, n_threads=1, n_threads_batch=1))
kept = []

async def main():
    kept.append(context.agenerate([1, 7], sampler=Sampler.chain([
        Sampler.logit_bias({model.token_eos: -float("inf")}), Sampler.dist(1)])))
    print((await anext(kept[0])).index, flush=True)

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""


@pytest.mark.parametrize(
    "end", ["", "loop.close()", "import os, threading; sys.exit(0)", "raise KeyboardInterrupt", "kept.clear()"]
)
def test_the_interpreter_ends_meanwhile(tiny_path: Callable[..., Path], end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + end, str(tiny_path())], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "0\n"
    expected = -2 if "Keyboard" in end else 0  # killed by the signal, as Python does
    assert done.returncode in {expected, 130 if expected else 0}, done.stderr
    errors = [line for line in done.stderr.splitlines() if "Error" in line or "Fatal" in line or "SIG" in line]
    assert not errors
