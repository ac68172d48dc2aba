"""Samplers, and chains of them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from conftest import SMALL
from moebind import (
    Batch,
    ClosedError,
    Context,
    Model,
    NativeError,
    Sampler,
    SamplerError,
    SamplerTimings,
    TokenDataArray,
    ffi,
    lib,
)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Sampler.top_k(-1), ValueError),
        (lambda: Sampler.top_k(1.5), TypeError),  # type: ignore[arg-type]
        (lambda: Sampler.top_p(1.1), ValueError),
        (lambda: Sampler.top_p(float("nan")), ValueError),
        (lambda: Sampler.top_p("0.9"), TypeError),  # type: ignore[arg-type]
        (lambda: Sampler.top_p(0.9, -1), ValueError),
        (lambda: Sampler.min_p(-0.1), ValueError),
        (lambda: Sampler.temp(-1.0), ValueError),
        (lambda: Sampler.temp(float("inf")), ValueError),
        (lambda: Sampler.dist(-1), ValueError),
        (lambda: Sampler.dist(2**32), ValueError),
        (lambda: Sampler.penalties(2**31 - 1), ValueError),
        (lambda: Sampler.penalties(64, 0.0), ValueError),
        (lambda: Sampler.penalties(64, 1.0, float("nan")), ValueError),
        (lambda: Sampler.chain([3]), TypeError),  # type: ignore[list-item]
        (lambda: Sampler(), TypeError),
    ],
)
def test_bad_arguments(make: Callable[[], Sampler], error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_samplers_of_a_chain_are_a_list() -> None:
    alone: tuple[Any, ...] = (Sampler.greedy(),)
    for given in (alone, (Sampler.top_k(3), Sampler.greedy()), ([Sampler.top_k(3)], Sampler.greedy())):
        with pytest.raises(TypeError, match=r"takes a list of samplers: Sampler\.chain\(\[Sampler\.top_k"):
            Sampler.chain(*given)
    with pytest.raises(TypeError, match="a list of samplers"):
        Sampler.chain_simple(*alone)


def test_chain() -> None:
    with Sampler.chain([Sampler.top_k(5), Sampler.temp(0.5), Sampler.dist(3)]) as chain:
        assert len(chain) == 3
        assert [part.name for part in chain] == ["top-k", "temp", "dist"]
        assert chain[0].name == "top-k"
        assert chain[-1].seed == chain.seed == 3
        assert repr(chain) == "<Sampler chain of top-k, temp, dist>"
        with pytest.raises(ValueError, match="index"):
            chain[3]
        part = chain[1]
    with pytest.raises(ClosedError, match="chain was closed"):
        part.apply(TokenDataArray.from_logits([1.0]))


def test_a_chain_owns_its_samplers() -> None:
    part = Sampler.temp(0.5)
    with Sampler.chain_simple([part]) as chain:
        for use in (lambda: part.name, part.reset, part.clone, lambda: part.accept(1), lambda: Sampler.chain([part])):
            with pytest.raises(ClosedError, match="belongs to a chain"):
                use()
        part.close()
        assert chain[0].name == "temp"
    twice = Sampler.greedy()
    with twice, pytest.raises(ClosedError, match="twice"):
        Sampler.chain([twice, twice])
    assert twice.closed
    with pytest.raises(TypeError, match=r"samplers holds 'greedy'; it takes samplers, such as Sampler\.greedy\(\)$"):
        Sampler.chain(["greedy"])  # type: ignore[list-item]


def test_a_part_stays_in_its_chain() -> None:
    chain = Sampler.chain([Sampler.temp(0.5), Sampler.chain([Sampler.top_k(2), Sampler.greedy()])])
    for part in (chain[0], chain[1], chain[1][0], chain.clone()[0]):
        loose = Sampler.min_p(0.1)
        with pytest.raises(ClosedError, match=r"belongs to a chain already: put its clone\(\)"):
            Sampler.chain([loose, part])
        assert loose.name == "min-p"  # nobody took it
        # The native side refuses as well: it knows who owns what.
        with Sampler.chain([]) as other, pytest.raises(NativeError, match="a part of what somebody else owns"):
            lib.moebind_chain_add(other.native, part.native)
    with Sampler.chain([chain[1].clone()]) as copy:
        chain.close()
        assert TokenDataArray.from_logits([1.0, 3.0]).with_sampler(copy).selected_token == 1


def test_only_chains_take_samplers() -> None:
    with Sampler.greedy() as sampler, Sampler.chain([]) as chain:
        for taker in (sampler, chain):
            with pytest.raises(NativeError, match="only a chain"):
                lib.moebind_chain_add(taker.native, taker.native)
        with pytest.raises(NativeError, match="only a chain"):
            lib.moebind_chain_add(sampler.native, chain.native)


def test_a_pointer_of_a_part_keeps_its_chain(moe: Model) -> None:
    grammar = Sampler.grammar(moe, 'root ::= "a"', "root")
    pointer = grammar.native
    chain = Sampler.chain([grammar, Sampler.greedy()])
    of_chain, of_part = chain.native, chain[0].native
    gc.collect()
    alive = lib.moebind_owned_alive()
    chain.close()
    del chain, grammar, of_chain, of_part
    gc.collect()
    assert ffi.string(lib.llama_sampler_name(pointer)) == b"grammar"
    del pointer
    assert lib.moebind_owned_alive() == alive - 2  # the chain and the grammar


def test_chains_in_chains() -> None:
    with Sampler.chain([Sampler.chain([Sampler.top_k(2), Sampler.temp(0.5)]), Sampler.greedy()]) as chain:
        assert len(chain) == 2
        assert len(chain[0]) == 2
        assert chain[0][0].name == "top-k"
        candidates = TokenDataArray.from_logits([1.0, 3.0, 2.0])
        chain.apply(candidates)
        assert candidates.selected_token == 1


def test_chains_nest_only_so_deep() -> None:
    chain = Sampler.chain([Sampler.greedy()])
    with pytest.raises(SamplerError, match="deeper than 32"):
        for _ in range(40):
            chain = Sampler.chain([chain])
    assert TokenDataArray.from_logits([1.0, 2.0]).with_sampler(chain).selected_token == 1
    assert chain.clone()[0][0][0].name == "chain"


def test_parts_keep_working_after_their_chain_was_collected() -> None:
    part = Sampler.chain([Sampler.top_k(1)])[0]
    gc.collect()
    candidates = TokenDataArray.from_logits([1.0, 3.0])
    part.apply(candidates)
    assert candidates.data["id"].tolist() == [1]


def test_clone_has_the_state() -> None:
    logits = [1.0, 1.0, 1.0]
    with (
        Sampler.chain([Sampler.penalties(5, 2.0), Sampler.greedy()]).with_tokens([0]) as original,
        original.clone() as copy,
    ):
        for sampler, expected in ((copy, 1), (original, 1)):
            candidates = TokenDataArray.from_logits(logits)
            sampler.apply(candidates)
            assert candidates.selected_token == expected
        copy.reset()
        candidates = TokenDataArray.from_logits(logits)
        copy.apply(candidates)
        assert candidates.selected_token == 0
        assert len(copy) == 2


def test_sample_from_a_context(context: Context) -> None:
    context.decode(Batch.get_one([1, 5, 9]))
    best = int(context.get_logits_ith(-1).argmax())
    with Sampler.greedy() as greedy, Sampler.chain_simple([Sampler.top_k(1), Sampler.dist(1)]) as chain:
        assert greedy.sample(context) == greedy.sample(context, 2) == chain.sample(context) == best
        for idx in (0, 5, -2):
            with pytest.raises(IndexError):
                greedy.sample(context, idx)


def test_chains_measure(context: Context) -> None:
    context.decode(Batch.get_one([1]))
    parts = [Sampler.temp(0.5), Sampler.greedy()]
    with Sampler.chain(parts) as chain, Sampler.chain([Sampler.greedy()], no_perf=True) as quiet:
        for _ in range(3):
            chain.sample(context)
            quiet.sample(context)
        assert chain.timings().n_sample == 3
        assert "3 tokens" in str(chain.timings())
        while not chain.timings().t_sample_ms:  # its clock counts microseconds, and so few candidates take less
            chain.sample(context)
        assert quiet.timings().t_sample_ms == 0
        chain.reset_timings()
        assert chain.timings() == SamplerTimings(0.0, 0)
        for use in (chain[0].timings, chain[1].reset_timings):
            with pytest.raises(SamplerError, match="not a chain"):
                use()


def test_a_filter_does_not_choose(context: Context) -> None:
    context.decode(Batch.get_one([1]))
    with Sampler.top_k(3) as filtering, pytest.raises(SamplerError, match="does not choose"):
        filtering.sample(context)
    with (
        Sampler.chain([Sampler.greedy(), Sampler.temp(1.0)]) as wrong,
        pytest.raises(SamplerError, match="end the chain"),
    ):
        wrong.sample(context)


def test_sampling_accepts(moe: Model) -> None:
    with (
        moe.new_context(SMALL) as context,
        Sampler.chain([Sampler.penalties(64, 1.0, 0.0, 1000.0), Sampler.greedy()]) as chain,
    ):
        context.decode(Batch.get_one([1, 5]))
        tokens = [chain.sample(context) for _ in range(10)]
    assert len(set(tokens)) == 10


@pytest.mark.parametrize("logits", [[float("nan")] * 3, [float("-inf")] * 3, [float("inf"), 0.0, 1.0]])
def test_logits_that_mean_nothing(logits: list[float]) -> None:
    for make in (Sampler.greedy, lambda: Sampler.dist(1), lambda: Sampler.top_p(0.5), lambda: Sampler.min_p(0.5)):
        candidates = TokenDataArray.from_logits(logits)
        with make() as sampler:
            sampler.apply(candidates)
        assert candidates.selected_token in {None, 0, 1, 2}


def test_closed_samplers() -> None:
    sampler = Sampler.greedy()
    sampler.close()
    sampler.close()
    for use in (lambda: sampler.name, lambda: sampler.seed, sampler.reset, sampler.clone, lambda: len(sampler)):
        with pytest.raises(ClosedError):
            use()
    assert repr(sampler) == "<Sampler, closed>"
