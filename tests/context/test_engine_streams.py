"""Many coroutines that ask an engine, of which some go away; and what they get."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Iterator

import psutil
import pytest
from engines import EXACT, PROMPTS, alone, check, endless, wait_until
from held import allocated

from conftest import SMALL
from moebind import Context, Engine, EngineFullError, Model, lib


@pytest.fixture
def engine(dense: Model) -> Iterator[Engine]:
    with Engine(dense, EXACT.with_n_seq_max(4), prompt_chunk=16, n_ahead=8) as engine:
        yield engine
        check(engine)


@pytest.fixture(scope="module")
def chatting(demo: Model) -> Iterator[Engine]:
    with Engine(demo, SMALL.with_n_seq_max(2).with_n_ctx(1024)) as engine:
        yield engine


@pytest.mark.parametrize(
    ("n_clients", "seed"), [(50, 1), (50, 2), *(pytest.param(500, seed, marks=pytest.mark.thorough) for seed in (3, 4))]
)
def test_clients_of_which_many_go_away(dense: Model, engine: Engine, n_clients: int, seed: int) -> None:
    chance = random.Random(seed)
    prompts = [[1, *range(3 + n % 40, 12 + n % 40 + n % 7 * 9)] for n in range(n_clients)]
    shown = {tuple(prompt): None for prompt in prompts}
    expected = dict(zip(shown, alone(dense, [list(each) for each in shown], max_tokens=12), strict=True))
    n_threads = threading.active_count()
    gc.collect()  # what other tests left would be closed meanwhile
    n_files = psutil.Process().num_fds()

    async def client(prompt: list[int], leaves: str, after: int) -> None:
        await asyncio.sleep(chance.random() / 100)
        if leaves == "":
            whole = await engine.agenerate(prompt, max_tokens=12, priority=after % 3).complete()
            assert whole.tokens == expected[tuple(prompt)]
            return
        stream = engine.agenerate(prompt, sampler=endless(dense))
        if leaves == "never asks":
            return
        try:
            async for piece in stream:
                if piece.index >= after:
                    break
        finally:
            if leaves == "closes":
                await stream.aclose()

    async def main() -> None:
        tasks, cancelled = [], []
        for prompt in prompts:
            leaves = chance.choice(["", "", "closes", "drops", "never asks", "is cancelled"])
            task = asyncio.ensure_future(client(prompt, leaves, chance.randrange(8)))
            (cancelled if leaves == "is cancelled" else tasks).append(task)
        for task in cancelled:
            await asyncio.sleep(chance.random() / 200)
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        await asyncio.gather(*tasks)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    held = []
    for _ in range(6):
        asyncio.run(main())
        wait_until(lambda: threading.active_count() <= n_threads)
        check(engine)
        held.append((allocated(), lib.moebind_owned_alive()))
        assert psutil.Process().num_fds() <= n_files
    # The first fill caches and pools. What is kept is there in every later round, so that what one round happened to
    # hold tells nothing. Two rounds with less than a KiB a client keep no text with its pieces and samplers.
    (before, alive), (after, alive_after) = (
        map(max, zip(*held[1:3], strict=True)),
        map(min, zip(*held[4:], strict=True)),
    )
    assert after - before < 1024 * 2 * n_clients, held
    # Natively, only samplers of the last batch are left: one of each sequence, and what it is a clone of.
    assert alive_after - alive <= 2 * engine.n_seq_max, held


def test_chats_are_those_of_a_context(chatting: Engine, talking: Context) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    expected = talking.chat(messages, max_tokens=12).complete()

    async def main() -> None:
        reply = chatting.achat(messages, max_tokens=12)
        assert reply.prompt is None
        assert await reply.complete() == reply.message == expected
        assert (reply.prompt and reply.prompt.prompt) == talking.chat(messages).prompt.prompt
        assert reply.usage.generated_tokens == 12
        streamed = chatting.achat(messages, max_tokens=12)
        deltas = [delta async for delta in streamed.deltas()]
        assert "".join(delta.get("content", "") for delta in deltas).strip() == expected["content"].strip()
        assert streamed.stop_reason == reply.stop_reason
        with pytest.raises(RuntimeError, match="has begun"):
            reply.deltas()
        with pytest.raises(RuntimeError, match="iterated once"):
            await anext(streamed)
        left = chatting.achat(messages)
        async for _ in left.deltas():
            break
        await left.aclose()

    asyncio.run(main())
    check(chatting)


def test_what_is_known_of_a_text(dense: Model, engine: Engine) -> None:
    async def main() -> None:
        stream = engine.agenerate(PROMPTS[1], max_tokens=5, sampler=endless(dense))
        assert (stream.text, stream.stop_reason, stream.usage.prompt_tokens) == ("", None, 0)
        first = await anext(stream)
        assert stream.text == first.text
        whole = await stream.complete()
        assert (whole.pieces[0], len(whole.pieces), whole.stop_reason) == (first, 5, "length")
        assert (whole.usage.prompt_tokens, whole.usage.generated_tokens) == (len(PROMPTS[1]), 5)
        nothing = await engine.agenerate(PROMPTS[1], max_tokens=0).complete()
        assert (nothing.text, nothing.stop_reason) == ("", "length")

    asyncio.run(main())


def test_errors_reach_who_awaits(dense: Model) -> None:
    async def main() -> None:
        async with Engine(dense, EXACT.with_n_seq_max(1), max_waiting=0, n_ahead=2) as engine:
            with pytest.raises(ValueError, match="no tokens|takes 1024"):
                await engine.agenerate("hello there " * 900).complete()
            first = engine.agenerate([1, 7], sampler=endless(dense))
            await anext(first)
            with pytest.raises(EngineFullError, match="takes no more"):
                await engine.agenerate([1, 7]).complete()
            await first.aclose()
            assert len((await engine.agenerate([1, 7], max_tokens=2).complete()).tokens) > 0
            check(engine)

    asyncio.run(main())


def test_the_event_loop_goes_on_meanwhile(dense: Model, engine: Engine) -> None:
    """While a batch is held in its middle."""
    from generations import Gate

    gate, ticks = Gate(), list[int]()

    async def main() -> None:
        asking = asyncio.ensure_future(engine.agenerate([1, 7], sampler=gate.sampler(), max_tokens=2).complete())
        await gate.is_reached()
        for tick in range(20):
            await asyncio.sleep(0.001)
            ticks.append(tick)
        gate.open.set()
        await asking

    asyncio.run(main())
    assert len(ticks) == 20
