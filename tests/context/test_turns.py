"""Taking turns, in one event loop and in several."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebind.context.turns import Turns


def test_who_comes_first_gets_one_first() -> None:
    async def main() -> None:
        turns = Turns(["a", "b"])
        assert [await turns.take(), await turns.take()] == ["a", "b"]
        assert (turns.n_free, turns.n_waiting) == (0, 0)
        got: list[int] = []

        async def wait(number: int) -> None:
            turns.give(await turns.take())
            got.append(number)

        waiting = [asyncio.ensure_future(wait(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert (turns.n_free, turns.n_waiting) == (0, 5)
        turns.give("b")
        await asyncio.gather(*waiting)
        assert got == [*range(5)]
        assert (turns.n_free, turns.n_waiting) == (1, 0)

    asyncio.run(main())


def test_none_can_be_given() -> None:
    turns = Turns([None])
    assert asyncio.run(turns.take()) is None
    assert turns.n_free == 0


@given(st.lists(st.sampled_from(["take", "cancel", "give", "step"]), max_size=40), st.randoms(use_true_random=False))
def test_nothing_is_lost(moves: list[str], chance: random.Random) -> None:
    """Cancelled before it got one, after, and in the moment between."""

    async def main() -> None:
        turns = Turns([1, 2])
        tasks: list[asyncio.Task[int]] = []
        held: list[int] = []

        def collect() -> None:
            for task in [each for each in tasks if each.done()]:
                tasks.remove(task)
                if not task.cancelled():
                    held.append(task.result())

        for move in moves:
            if move == "take":
                tasks.append(asyncio.ensure_future(turns.take()))
            elif move == "cancel" and tasks:
                chance.choice(tasks).cancel()
            elif move == "give" and held:
                turns.give(held.pop())
            else:
                await asyncio.sleep(0)
                collect()
        while held or tasks:
            for thing in held:
                turns.give(thing)
            held.clear()
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
            collect()
        assert (turns.n_free, turns.n_waiting) == (2, 0)
        assert {await turns.take(), await turns.take()} == {1, 2}

    asyncio.run(main())


def test_threads_with_event_loops_of_their_own() -> None:
    turns = Turns([1])
    inside: list[int] = []
    done: list[int] = []

    async def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            taking = asyncio.ensure_future(turns.take())
            await asyncio.sleep(chance.choice([0, 0, 0.0003]))
            if chance.random() < 0.4:
                taking.cancel()
            try:
                thing = await taking
            except asyncio.CancelledError:
                continue
            inside.append(seed)
            await asyncio.sleep(0)
            assert inside == [seed], "two have it at once"
            inside.clear()
            turns.give(thing)
        done.append(seed)

    threads = [threading.Thread(target=lambda seed=seed: asyncio.run(work(seed))) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [*range(4)]
    assert (turns.n_free, turns.n_waiting) == (1, 0)


def test_an_event_loop_that_ended_gets_nothing() -> None:
    turns = Turns([1])
    asyncio.run(turns.take())
    ended = asyncio.new_event_loop()
    waiting = ended.create_task(turns.take())
    ended.run_until_complete(asyncio.sleep(0))
    assert turns.n_waiting == 1
    ended.close()
    turns.give(1)
    assert (turns.n_free, turns.n_waiting) == (1, 0)
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio does on purpose
    waiting.get_coro().close()
    assert (turns.n_free, turns.n_waiting) == (1, 0)


def test_what_waits_and_is_dropped_leaves_the_queue() -> None:
    async def main() -> None:
        turns = Turns([1])
        await turns.take()
        waiting = turns.take()
        waiting.send(None)
        assert turns.n_waiting == 1
        waiting.close()
        assert turns.n_waiting == 0
        given = turns.take()
        given.send(None)
        turns.give(1)
        assert turns.n_free == 0
        given.close()  # it was given, and never knew
        assert turns.n_free == 1

    asyncio.run(main())


def test_it_is_for_coroutines() -> None:
    turns: Turns[int] = Turns([])
    with pytest.raises(RuntimeError, match="no running event loop"):
        turns.take().send(None)
