"""agenerate and achat: the same texts as generate and chat, and nothing left behind by those who go away."""

from __future__ import annotations

import asyncio
import contextvars
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
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from chats import HELLO

from conftest import SMALL
from moebind import AbortedError, AsyncChatReply, AsyncPieces, ClosedError, Context, Model, Sampler, SamplerError
from moebind.context import asynchronous

PROMPT = [1, 7, 8]


@pytest.fixture
def two(dense: Model) -> Iterator[Context]:
    with dense.new_context(SMALL.with_n_seq_max(2).with_n_ctx(1024)) as context:
        yield context


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "moebind generation"]


def gone() -> None:
    """Wait until no thread generates, until pytest's own limit."""
    while threads():
        time.sleep(0.002)


class Gate:
    """A sampler that waits for ``open`` before each token, and counts."""

    def __init__(self) -> None:
        self.open, self.reached, self.n_tokens = threading.Event(), threading.Event(), 0

    def __call__(self, _candidates: object) -> None:
        self.n_tokens += 1
        self.reached.set()
        self.open.wait()

    def sampler(self) -> Sampler:
        return Sampler.chain([Sampler.from_callable(self), Sampler.greedy()])

    async def is_reached(self) -> None:
        while not self.reached.is_set():
            await asyncio.sleep(0.001)


# --- what it gives ---


def test_pieces_are_those_of_generate(two: Context) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "seed": 4, "logprobs": 2, "stop": [270]}
    expected = two.generate(PROMPT, **options)
    pieces = list(expected)

    async def main() -> None:
        stream = two.agenerate(PROMPT, **options, reuse_prefix=False)
        assert stream.usage.prompt_tokens == 0
        assert isinstance(stream, AsyncPieces)
        got = [piece async for piece in stream]
        assert [piece.token for piece in got] == [piece.token for piece in pieces]
        assert [piece.logprob for piece in got] == pytest.approx([piece.logprob for piece in pieces])
        assert (stream.text, stream.stop_reason, stream.stop) == (expected.text, expected.stop_reason, expected.stop)
        assert stream.usage == expected.usage
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert (await stream.complete()).text == expected.text
        again = two.agenerate(PROMPT, **options)
        first = await anext(again)
        completion = await again.complete()
        assert completion.pieces[0] == first
        assert completion.text == expected.text
        assert completion.usage.cached_tokens == 2
        assert (await two.agenerate(PROMPT, max_tokens=0).complete()).stop_reason == "length"

    asyncio.run(main())


def test_replies_are_those_of_chat(talking: Context) -> None:
    expected = talking.chat(HELLO, max_tokens=8)
    message = expected.complete()

    async def main() -> None:
        reply = talking.achat(HELLO, max_tokens=8)
        assert isinstance(reply, AsyncChatReply)
        assert reply.prompt is None
        assert "".join([piece.text async for piece in reply]) == expected.text
        assert await reply.complete() == message
        assert reply.prompt == expected.prompt
        by_deltas = talking.achat(HELLO, max_tokens=8)
        deltas = by_deltas.deltas()
        assert "".join([delta["content"] async for delta in deltas]) == message["content"]
        assert (by_deltas.stop_reason, by_deltas.usage.generated_tokens) == ("length", 8)
        for late in (by_deltas, reply):
            with pytest.raises(RuntimeError, match="has begun"):
                late.deltas()
        with pytest.raises(RuntimeError, match="as deltas"):
            await anext(by_deltas)
        unbegun = talking.achat(HELLO)
        await unbegun.aclose()
        with pytest.raises(RuntimeError, match="before it began"):
            await unbegun.complete()

    asyncio.run(main())


def test_errors_reach_who_awaits(two: Context) -> None:
    def broken(_candidates: object) -> None:
        raise LookupError("not today")

    calls: list[tuple[Callable[[], Awaitable[object]], type[Exception], str]] = [
        (lambda: two.agenerate([]).complete(), ValueError, "no tokens"),
        (lambda: two.agenerate(PROMPT, temprature=1).complete(), TypeError, "temprature"),  # type: ignore[call-arg]
        (lambda: two.agenerate(PROMPT, seq_id=2).complete(), ValueError, "seq_id"),
        (lambda: two.agenerate(PROMPT, sampler=Sampler.top_k(3)).complete(), SamplerError, "does not choose"),
        (lambda: two.achat(HELLO, template="chatml", temprature=1).complete(), TypeError, "did you mean 'temperature'"),
        (lambda: anext(two.achat([], template="chatml").deltas()), ValueError, "messages is empty"),
        (lambda: two.agenerate(PROMPT, sampler=Sampler.from_callable(broken)).complete(), LookupError, "not today"),
    ]

    async def main() -> None:
        for call, error, message in calls:
            with pytest.raises(error, match=message):
                await call()
        # Nobody keeps the turn.
        assert len((await two.agenerate(PROMPT, max_tokens=3).complete()).tokens) == 3

    asyncio.run(main())
    gone()


def test_contextvars_are_those_of_the_task(two: Context) -> None:
    client = contextvars.ContextVar[str]("client")
    seen: list[str] = []
    sampler = Sampler.chain([Sampler.from_callable(lambda _: seen.append(client.get())), Sampler.greedy()])

    async def main() -> None:
        client.set("Ada")
        await two.agenerate(PROMPT, sampler=sampler, max_tokens=2).complete()

    asyncio.run(main())
    assert seen == ["Ada", "Ada"]


# --- the event loop ---


def test_the_event_loop_goes_on_meanwhile(two: Context) -> None:
    """The sampler waits for the event loop: if that were blocked, this would never end."""
    gate = Gate()

    async def main() -> None:
        writing = asyncio.ensure_future(two.agenerate(PROMPT, sampler=gate.sampler(), max_tokens=2).complete())
        waiting = [asyncio.ensure_future(two.agenerate(PROMPT, max_tokens=1).complete()) for _ in range(50)]
        await gate.is_reached()
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(threads()) == 1, "those who wait for their turn have no threads"
        gate.open.set()
        assert len((await writing).tokens) == 2
        await asyncio.gather(*waiting)
        assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]

    asyncio.run(main())
    gone()


def test_two_sequences_run_side_by_side(two: Context) -> None:
    expected = [[piece.token for piece in two.generate([1, n], max_tokens=9, reuse_prefix=False)] for n in (5, 6)]

    async def main() -> None:
        both = [two.agenerate([1, n], max_tokens=9, seq_id=seq).complete() for seq, n in enumerate((5, 6))]
        assert [list(each.tokens) for each in await asyncio.gather(*both)] == expected

    asyncio.run(main())


def test_one_task_at_a_time(two: Context) -> None:
    gate = Gate()

    async def main() -> None:
        stream = two.agenerate(PROMPT, sampler=gate.sampler())
        waiting = asyncio.ensure_future(anext(stream))
        await gate.is_reached()
        with pytest.raises(RuntimeError, match="another task is waiting"):
            await anext(stream)
        gate.open.set()
        assert (await waiting).index == 0
        await stream.aclose()

    asyncio.run(main())


# --- going away ---


async def cancelled(stream: AsyncPieces) -> None:
    task = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def timed_out(stream: AsyncPieces) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(stream), 0.01)


async def left(stream: AsyncPieces) -> None:
    with pytest.raises(ZeroDivisionError):
        async with stream:
            1 / 0  # noqa: B018


async def closed(stream: AsyncPieces) -> None:
    await stream.aclose()
    await stream.aclose()


async def closed_by_contextlib(stream: AsyncPieces) -> None:
    async with aclosing(stream):
        pass


WAYS = [cancelled, timed_out, left, closed, closed_by_contextlib]


@pytest.mark.parametrize("way", WAYS)
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
    gate = Gate()

    async def main() -> None:
        stream = two.agenerate(PROMPT, sampler=gate.sampler())
        gate.open.set()
        await anext(stream)
        gate.open.clear()
        dropped = weakref.ref(stream)
        del stream
        assert dropped() is None, "something keeps it"
        gate.open.set()
        assert len((await two.agenerate(PROMPT, max_tokens=2).complete()).tokens) == 2

    asyncio.run(main())
    gone()
    assert gate.n_tokens < two.n_ctx_seq - 10


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
        async with two.agenerate(PROMPT, temperature=5.0, top_k=0) as pieces:
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
    gate = Gate()

    async def main() -> None:
        stream = two.agenerate(PROMPT, sampler=gate.sampler())
        gate.open.set()
        await anext(stream)
        gate.open.clear()
        taking = threading.Thread(target=lambda: two.generate(PROMPT, max_tokens=1).complete())
        taking.start()
        gate.open.set()
        with pytest.raises(ClosedError, match="took over"):
            await stream.complete()
        taking.join()

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
