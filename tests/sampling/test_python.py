"""Samplers written in Python."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from samplers import LOGITS, apply

from conftest import SMALL
from moebind import Batch, ClosedError, Context, Model, Sampler, SamplerError, TokenDataArray, lib


def choose_two(candidates: TokenDataArray) -> None:
    candidates.select(2)


def test_it_edits_the_very_memory() -> None:
    seen = []

    def double(candidates: TokenDataArray) -> None:
        seen.append(candidates)
        candidates.data["logit"] *= 2

    with Sampler.from_callable(double, name="double") as sampler:
        assert sampler.name == "double"
        assert sampler.seed is None
        candidates = apply(sampler)
        assert seen == [candidates]
        assert candidates.data["logit"].tolist() == [2, 8, 4, 6, 0]
        candidates.apply_sampler(sampler)
        assert candidates.data["logit"].tolist() == [4, 16, 8, 12, 0]


def test_in_a_chain_it_sees_what_is_left_and_narrows_it() -> None:
    seen = []

    def drop_the_best(candidates: TokenDataArray) -> None:
        assert candidates.sorted
        seen.append(candidates.data["id"].tolist())
        candidates.keep(slice(1, None))

    with Sampler.chain([Sampler.top_k(3), Sampler.from_callable(drop_the_best), Sampler.greedy()]) as chain:
        assert apply(chain).selected_token == 3
        assert seen == [[1, 3, 2]]
        assert chain[1].name == "python"
        assert repr(chain) == "<Sampler chain of top-k, python, greedy>"


def test_after_xtc_too_which_moves_the_candidates() -> None:
    seen = []
    chain = [Sampler.xtc(1.0, 0.05, 1, 1), Sampler.from_callable(lambda c: seen.append(c.data["id"].tolist()))]
    with Sampler.chain([*chain, Sampler.greedy()]) as sampler:
        chosen = apply(sampler).selected_token
        assert seen[0][0] == chosen
        assert len(seen[0]) < len(LOGITS)


def test_it_may_choose() -> None:
    with Sampler.from_callable(choose_two) as sampler:
        assert apply(sampler).selected_token == 2
        with Sampler.chain([Sampler.top_k(4), sampler]) as chain:
            assert apply(chain).selected_token == 2
            with pytest.raises(ValueError, match="token 2 is not among the 1"):
                apply(Sampler.chain([Sampler.top_k(1), chain.clone()]))


def test_what_is_no_longer_sorted_is_sorted_again() -> None:
    def reverse(candidates: TokenDataArray) -> None:
        candidates.data["logit"] *= -1

    with Sampler.chain([Sampler.top_k(0), Sampler.top_k(5), Sampler.from_callable(reverse), Sampler.top_k(2)]) as chain:
        assert apply(chain).data["id"].tolist() == [4, 0]


def test_sampling_and_generating(moe: Model) -> None:
    with moe.new_context(SMALL) as context, Sampler.from_callable(lambda c: c.select(65 + 3)) as sampler:
        context.decode(Batch.get_one([1, 5, 9]))
        assert sampler.sample(context) == 68
        text = "".join(piece.text for piece in context.generate([1], sampler=sampler, max_tokens=4))
        assert text == "AAAA"


def test_a_sampler_that_does_not_choose(moe: Model) -> None:
    with moe.new_context(SMALL) as context, Sampler.from_callable(lambda c: c.sort()) as sampler:
        context.decode(Batch.get_one([1]))
        with pytest.raises(SamplerError, match="chose no token"):
            sampler.sample(context)

        def foreign(candidates: TokenDataArray) -> None:
            candidates.data["id"][:] = 10**6
            candidates.selected = 0

        with Sampler.from_callable(foreign) as wrong, pytest.raises(SamplerError, match="token 1000000"):
            wrong.sample(context)


@pytest.mark.parametrize("error", [KeyError("no"), KeyboardInterrupt(), SystemExit(3), StopIteration()])
def test_exceptions_reach_the_caller_and_all_stays_usable(moe: Model, error: BaseException) -> None:
    failing = True

    def fail(candidates: TokenDataArray) -> None:
        if failing:
            raise error
        candidates.select(70)

    with (
        moe.new_context(SMALL) as context,
        Sampler.chain([Sampler.penalties(8, 2.0), Sampler.from_callable(fail)]) as chain,
    ):
        context.decode(Batch.get_one([1, 5]))
        candidates = context.token_data_array()
        for use in (lambda: chain.sample(context), lambda: chain.apply(candidates)):
            with pytest.raises(type(error)) as caught:
                use()
            assert caught.value is error
        # A generator turns a StopIteration into a RuntimeError.
        with pytest.raises((type(error), RuntimeError)):
            next(context.generate([1, 5], sampler=chain))
        failing = False
        assert chain.sample(context) == 70
        assert candidates.with_sampler(chain).selected_token == 70
        assert next(context.generate([1, 5], sampler=chain)).token == 70


def test_what_it_returns_must_not_get_lost() -> None:
    with (
        Sampler.from_callable(lambda c: c.data) as sampler,  # type: ignore[arg-type, return-value]
        pytest.raises(TypeError, match="in place"),
    ):
        apply(sampler)


class Counter:
    """A sampler with a state."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def __call__(self, candidates: TokenDataArray) -> None:
        candidates.select(len(self.accepted))

    def accept(self, token: int) -> None:
        if token == 4:
            raise ValueError("not 4")
        self.accepted.append(token)

    def reset(self) -> None:
        self.accepted.clear()


def test_objects_have_a_state() -> None:
    counter = Counter()
    with Sampler.chain([Sampler.top_k(0), Sampler.from_callable(counter)]) as sampler:
        assert apply(sampler).selected_token == 0
        sampler.accept_many([3, 1])
        assert counter.accepted == [3, 1]
        assert apply(sampler).selected_token == 2
        with sampler.clone() as copy:
            sampler.reset()
            assert counter.accepted == []
            assert apply(copy).selected_token == 2
            copy.accept(0)
            assert apply(copy).selected_token == 3
            assert apply(sampler).selected_token == 0
            with pytest.raises(ValueError, match="not 4"):
                copy.accept(4)


def test_objects_say_how_they_are_copied() -> None:
    class Shared(Counter):
        def clone(self) -> Shared:
            return self

    class Wrong(Counter):
        def clone(self) -> int:
            return 3

    shared = Shared()
    with Sampler.from_callable(shared) as sampler, sampler.clone() as copy:
        copy.accept(1)
        assert shared.accepted == [1]
    with Sampler.from_callable(Wrong()) as sampler, pytest.raises(TypeError, match="clone"):
        sampler.clone()

    class Locked(Counter):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    with Sampler.from_callable(Locked()) as sampler, pytest.raises(TypeError, match="pickle"):
        sampler.clone()


def test_functions_are_shared_by_copies() -> None:
    with Sampler.from_callable(choose_two) as sampler, sampler.clone() as copy:
        sampler.close()
        assert apply(copy).selected_token == 2


def test_it_lives_as_long_as_it_is_used() -> None:
    class Choice:
        def __call__(self, candidates: TokenDataArray) -> None:
            candidates.selected = 1

        def reset(self) -> None: ...

    choice = Choice()
    gone = weakref.ref(choice)
    chain = Sampler.chain([Sampler.top_k(3), Sampler.from_callable(choice)])
    del choice
    gc.collect()
    copy = chain.clone()
    assert apply(chain).selected == 1
    chain.close()
    gc.collect()
    assert gone() is None
    assert apply(copy).selected == 1
    copy.close()


def test_references_do_not_grow() -> None:
    before = sys.getrefcount(choose_two)
    for _ in range(50):
        with Sampler.from_callable(choose_two) as sampler, sampler.clone() as copy:
            apply(copy)
    gc.collect()
    assert sys.getrefcount(choose_two) <= before + 2


def test_candidates_outlive_the_call(moe: Model) -> None:
    kept: list[tuple[TokenDataArray, np.ndarray]] = []
    with moe.new_context(SMALL) as context:
        context.decode(Batch.get_one([1]))
        with Sampler.from_callable(lambda c: kept.append((c, c.data)) or c.select(5)) as sampler:
            sampler.sample(context)
            # libllama's own call works on memory of its own, which is not shown.
            assert lib.llama_sampler_sample(sampler.native, context.native, -1) == 5
    gc.collect()
    for candidates, data in kept:
        assert data["logit"].size == len(candidates) == moe.n_vocab
        data["logit"][:] = 0


def test_callbacks_must_not_call_back(moe: Model, context: Context) -> None:
    context.decode(Batch.get_one([1]))
    errors: list[BaseException] = []

    def meddle(candidates: TokenDataArray) -> None:
        for call in (
            lambda: sampler.apply(candidates),
            lambda: sampler.accept(1),
            sampler.close,
            sampler.reset,
            sampler.clone,
            lambda: context.decode(Batch.get_one([1])),
            context.close,
        ):
            try:
                call()
            except RuntimeError as error:
                errors.append(error)
        with Sampler.temp(0.5) as other:
            candidates.apply_sampler(other)
        candidates.select(3)

    with Sampler.from_callable(meddle) as sampler:
        assert sampler.sample(context) == 3
        assert len(errors) == 7


def test_samplers_within_samplers() -> None:
    inner = Sampler.from_callable(choose_two)

    def outer(candidates: TokenDataArray) -> None:
        candidates.apply_sampler(inner)
        assert candidates.selected_token == 2
        other = TokenDataArray.from_logits(LOGITS)
        other.apply_sampler(inner)
        assert other.selected_token == 2

    with Sampler.from_callable(outer) as sampler, inner:
        assert apply(sampler).selected_token == 2


def test_one_that_is_left_at_the_end_of_the_program() -> None:
    program = """
import os, threading
from moebind import ClosedError, Sampler, TokenDataArray
sampler = Sampler.chain([Sampler.from_callable(lambda c: c.select(1)), Sampler.temp(1.0)])
kept = sampler[0], sampler.clone()
thread = threading.Thread(target=TokenDataArray.from_logits([1.0, 2.0]).apply_sampler, args=[sampler])
thread.start()
thread.join()
child = os.fork()
if child == 0:
    for each in (sampler, *kept):
        try:
            each.apply(TokenDataArray.from_logits([1.0, 2.0]))
        except ClosedError:
            continue
        raise AssertionError
else:
    assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_several_threads() -> None:
    candidates = TokenDataArray.from_logits(np.arange(200))
    with Sampler.chain([Sampler.from_callable(lambda c: c.sort()), Sampler.greedy()]) as chain:
        threads = [
            threading.Thread(target=lambda: [candidates.apply_sampler(chain) for _ in range(50)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert candidates.selected_token == 199


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="called"):
        Sampler.from_callable(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name"):
        Sampler.from_callable(choose_two, name=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NUL"):
        Sampler.from_callable(choose_two, name="a\0b")
    sampler = Sampler.from_callable(choose_two)
    sampler.close()
    with pytest.raises(ClosedError):
        apply(sampler)
    with Sampler.from_callable(choose_two) as sampler:
        for wrong in (None, 3, np.zeros(3), LOGITS):
            with pytest.raises(TypeError, match="TokenDataArray"):
                sampler.apply(wrong)  # type: ignore[arg-type]
