"""agenerate and achat: the same texts as generate and chat, and nothing left behind by those who go away."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from chats import HELLO
from generations import Gate, gone, threads

from conftest import EXACT, SMALL
from moebind import (
    AbortedError,
    AsyncChatReply,
    AsyncPieces,
    Batch,
    Context,
    ContextPool,
    Model,
    Sampler,
    SamplerError,
)

PROMPT = [1, 7, 8]


@pytest.fixture
def two(dense: Model) -> Iterator[Context]:
    with dense.new_context(SMALL.with_n_seq_max(2).with_n_ctx(1024)) as context:
        yield context


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
        with pytest.raises(RuntimeError, match="there is no message yet: await the reply's first piece, or complete"):
            _ = reply.message
        first = await anext(reply)
        assert reply.message["content"] == first.text
        assert first.text + "".join([piece.text async for piece in reply]) == expected.text
        assert await reply.complete() == reply.message == message
        assert reply.prompt == expected.prompt
        by_deltas = talking.achat(HELLO, max_tokens=8)
        deltas = by_deltas.deltas()
        assert "".join([delta["content"] async for delta in deltas]) == message["content"]
        assert (by_deltas.stop_reason, by_deltas.usage.generated_tokens) == ("length", 8)
        assert by_deltas.message == message
        for late in (by_deltas, reply):
            with pytest.raises(RuntimeError, match="has begun"):
                late.deltas()
        with pytest.raises(RuntimeError, match="as deltas"):
            await anext(by_deltas)
        unbegun = talking.achat(HELLO)
        await unbegun.aclose()
        with pytest.raises(RuntimeError, match="before it began"):
            await unbegun.complete()
        with pytest.raises(RuntimeError, match="before it began"):
            _ = unbegun.message

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


BAD: list[tuple[str, object, dict[str, object], type[Exception], str]] = [
    ("agenerate", None, {}, TypeError, "prompt is None; it takes text, token ids, or a list"),
    ("agenerate", [], {}, ValueError, "no tokens"),
    ("agenerate", [10**6], {}, ValueError, "prompt"),
    ("agenerate", "\ud800", {}, ValueError, "surrogate"),
    ("agenerate", [1] * 5000, {}, ValueError, "prompt has 5000 tokens.*larger n_ctx"),
    ("agenerate", [{"role": "user"}], {}, ValueError, "neither 'content'"),
    ("agenerate", PROMPT, {"seq_id": 2}, ValueError, "seq_id"),
    ("agenerate", PROMPT, {"max_tokens": 1.5}, TypeError, "max_tokens"),
    ("agenerate", PROMPT, {"temperature": -1}, ValueError, "temperature"),
    ("agenerate", PROMPT, {"sampler": Sampler.greedy(), "seed": 1}, TypeError, "sampler"),
    ("agenerate", PROMPT, {"logprobs": -1}, ValueError, "logprobs"),
    ("agenerate", PROMPT, {"reuse_prefix": 2}, TypeError, "reuse_prefix"),
    ("achat", None, {}, TypeError, "messages"),
    ("achat", [], {}, ValueError, "messages is empty"),
    ("achat", HELLO, {"tools": [{}]}, TypeError, "tools"),
    ("achat", HELLO, {"tool_choice": "maybe"}, ValueError, "tool_choice"),
    ("achat", HELLO, {"max_tokens": -2}, ValueError, "max_tokens"),
]


@pytest.mark.parametrize(("call", "prompt", "options", "error", "message"), BAD)
def test_what_can_be_seen_is_told_at_the_call(
    two: Context, call: str, prompt: object, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(two, call)(prompt, **options)
    with pytest.raises(error, match=message):
        getattr(ContextPool([two]), call)(prompt, **options)


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
    gone()  # those of other tests

    async def main() -> None:
        writing = asyncio.ensure_future(two.agenerate(PROMPT, sampler=gate.sampler(), max_tokens=2).complete())
        waiting = [asyncio.ensure_future(two.agenerate(PROMPT, max_tokens=1).complete()) for _ in range(50)]
        await gate.is_reached()
        for _ in range(100):
            await asyncio.sleep(0)
        n_threads = len(threads())
        gate.open.set()
        assert n_threads == 1, "those who wait for their turn have no threads"
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
        try:
            with pytest.raises(RuntimeError, match="another task is waiting"):
                await anext(stream)
        finally:
            gate.open.set()
        assert (await waiting).index == 0
        await stream.aclose()

    asyncio.run(main())


# --- asyncio.to_thread, for what has no coroutine ---


def test_calls_in_threads_of_asyncio(dense: Model) -> None:
    """They wait for each other, and the event loop for none of them."""
    tokens = list(range(3, 40))

    async def main(context: Context) -> None:
        gate = Gate()
        asked = asyncio.ensure_future(
            asyncio.to_thread(lambda: context.generate(PROMPT, sampler=gate.sampler(), max_tokens=2).complete())
        )
        await gate.is_reached()  # it holds the context, in the middle
        states = asyncio.gather(*(asyncio.to_thread(context.state_seq_get, seq) for seq in (0, 1)))
        await asyncio.sleep(0.01)
        assert not states.done()
        gate.open.set()
        assert len((await asked).tokens) == 2
        assert all(await states)
        context.kv_cache_clear()
        await asyncio.to_thread(context.decode, Batch.get_one(tokens))
        there = context.get_logits_ith(-1).copy()
        context.kv_cache_clear()
        context.decode(Batch.get_one(tokens))
        assert (context.get_logits_ith(-1) == there).all()

    with dense.new_context(EXACT.with_n_seq_max(2)) as context:
        asyncio.run(main(context))


def test_a_cancelled_task_does_not_stop_its_thread_and_abort_does(dense: Model) -> None:
    async def main(context: Context) -> None:
        gate, ends = Gate(), list[BaseException | None]()

        def work() -> None:
            try:
                context.generate(PROMPT, sampler=gate.sampler(), max_tokens=400).complete()
                ends.append(None)
            except AbortedError as error:
                ends.append(error)

        task = asyncio.ensure_future(asyncio.to_thread(work))
        await gate.is_reached()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not ends
        context.abort()
        gate.open.set()
        while not ends:
            await asyncio.sleep(0.002)
        assert isinstance(ends[0], AbortedError)

    with dense.new_context(EXACT) as context:
        asyncio.run(main(context))
