"""Chains of samplers that a context runs in its graph."""

from __future__ import annotations

import gc

import bounds
import numpy as np
import pytest
from computed import TOKENS, logits_of

from conftest import EXACT, SMALL
from moebind import Batch, ClosedError, Context, Model, Sampler, SamplerError, ffi, lib
from moebind._core.native import own

TWO = SMALL.with_n_ctx(512).with_n_seq_max(2)


def test_greedy_in_the_graph_is_the_argmax(dense: Model) -> None:
    with Sampler.chain([Sampler.greedy()]) as chain, dense.new_context(SMALL, samplers={0: chain}) as context:
        context.decode(Batch.get_one(TOKENS))
        token = context.sampled_token_ith()
        assert token == int(logits_of(dense).argmax())
        assert chain.sample(context) == token
        assert context.sampled_token_ith(len(TOKENS) - 1) == token


def test_top_k_leaves_candidates(dense: Model) -> None:
    expected = logits_of(dense)
    order = np.argsort(-expected)[:5]
    with Sampler.chain([Sampler.top_k(5)]) as chain, dense.new_context(SMALL, samplers={0: chain}) as context:
        context.decode(Batch.get_one(TOKENS))
        candidates, logits = context.sampled_candidates_ith(), context.sampled_logits_ith()
        assert candidates is not None
        assert logits is not None
        assert candidates.dtype == np.int32
        assert set(candidates.tolist()) == set(order.tolist())
        np.testing.assert_array_equal(logits, expected[candidates])
        assert context.sampled_token_ith() is None
        assert context.sampled_probs_ith() is None
        for array in (candidates, logits):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_dist_gives_probabilities(dense: Model) -> None:
    expected = logits_of(dense)
    chain = Sampler.chain([Sampler.top_k(5), Sampler.temp(0.5), Sampler.dist(7)])
    with chain, dense.new_context(SMALL, samplers={0: chain}) as context:
        context.decode(Batch.get_one(TOKENS))
        candidates, probs = context.sampled_candidates_ith(), context.sampled_probs_ith()
        assert candidates is not None
        assert probs is not None
        softmax = np.exp(2 * (expected[candidates] - expected.max()))
        np.testing.assert_allclose(probs, softmax / softmax.sum(), atol=1e-4)
        assert context.sampled_token_ith() in candidates


def test_what_cannot_run_in_the_graph_is_done_by_sample(dense: Model) -> None:
    # Penalties run in the graph only where a sequence has one output a batch.
    chain = Sampler.chain([Sampler.top_k(3), Sampler.penalties(4, 1.5), Sampler.greedy()])
    with chain, dense.new_context(SMALL.with_n_outputs_max_per_seq(2), samplers={0: chain}) as context:
        context.decode(Batch.get_one(TOKENS))
        assert context.sampled_token_ith() is None
        assert chain.sample(context) == int(logits_of(dense).argmax())


def test_penalties_in_the_graph(dense: Model) -> None:
    best = int(logits_of(dense).argmax())
    penalties = Sampler.penalties(8, penalty_present=1000.0, n_vocab=dense.n_vocab).with_tokens([best])
    chain = Sampler.chain([penalties, Sampler.greedy()])
    params = SMALL.with_n_outputs_max_per_seq(1)
    with chain, dense.new_context(params, samplers={0: chain}) as context:
        context.decode(Batch.get_one(TOKENS))
        token = context.sampled_token_ith()
        assert token == int(np.argsort(-logits_of(dense))[1])


def biased(model: Model, token: int) -> Sampler:
    entries = ffi.new("llama_logit_bias[]", [(token, 100.0)])
    sampler = Sampler._make(own(lib.own_llama_sampler_init_logit_bias, model.n_vocab, 1, entries))
    sampler._token_max = token
    return sampler


def test_biases_in_the_graph(dense: Model) -> None:
    with dense.new_context(SMALL, samplers={0: Sampler.chain([biased(dense, 7), Sampler.greedy()])}) as context:
        context.decode(Batch.get_one(TOKENS))
        assert context.sampled_token_ith() == 7
    # They are written by token, into what a filter has left in another order, or beyond its end.
    for filters in ([Sampler.top_k(5)], [Sampler.top_p(0.9)], [Sampler.chain([Sampler.top_p(0.9)])]):
        with pytest.raises(SamplerError, match="put it first"):
            dense.new_context(SMALL, samplers={0: Sampler.chain([*filters, biased(dense, 7)])})
    with pytest.raises(SamplerError, match="vocabulary ends"):
        dense.new_context(SMALL, samplers={0: Sampler.chain([biased(dense, dense.n_vocab)])})


def test_generate_uses_the_chain(dense: Model) -> None:
    with dense.new_context(SMALL) as context:
        expected = [piece.token for piece in context.generate(TOKENS, max_tokens=12)]
    with Sampler.chain([Sampler.greedy()]) as chain, dense.new_context(SMALL, samplers={0: chain}) as context:
        assert [piece.token for piece in context.generate(TOKENS, max_tokens=12)] == expected
        assert [piece.token for piece in context.generate(TOKENS, max_tokens=12, sampler=chain)] == expected
        for _ in context.generate(TOKENS, max_tokens=2):
            with pytest.raises(IndexError, match="backend sampler"):
                context.get_logits_ith(-1)


def test_seeds_repeat(dense: Model) -> None:
    texts = []
    for seed in (1, 1, 2):
        chain = Sampler.chain([Sampler.temp(1.5), Sampler.dist(seed)])
        with chain, dense.new_context(SMALL.with_n_outputs_max_per_seq(1), samplers={0: chain}) as context:
            texts.append([piece.token for piece in context.generate(TOKENS, max_tokens=12)])
    assert texts[0] == texts[1] != texts[2]


def test_logits_stay_where_the_chain_is(dense: Model) -> None:
    # libllama would show what an earlier batch left in that memory.
    two = EXACT.with_n_ctx(512).with_n_seq_max(2)
    with Sampler.chain([Sampler.greedy()]) as chain, dense.new_context(two, samplers={1: chain}) as context:
        batch = Batch(4)
        batch.add_sequence([1, 7], 0)
        batch.add_sequence([1, 8], 1)
        context.decode(batch)
        np.testing.assert_allclose(context.get_logits_ith(1), logits_of(dense, [1, 7], EXACT), atol=bounds.ORDER)
        assert context.get_logits_ith(-2).shape == (dense.n_vocab,)
        for read in (lambda: context.get_logits_ith(3), lambda: context.get_logits_ith(-1), context.get_logits):
            with pytest.raises(IndexError, match="sequence 1 stayed"):
                read()
        assert context.sampled_token_ith(1) is None
        assert context.sampled_token_ith(3) == int(logits_of(dense, [1, 8]).argmax())
        with pytest.raises(SamplerError, match="set_sampler"):
            context.generate_many([[1]])


def test_chains_come_and_go(dense: Model) -> None:
    with dense.new_context(SMALL) as context, Sampler.chain([Sampler.greedy()]) as first:
        context.decode(Batch.get_one(TOKENS))
        kept = context.get_logits_ith(-1)
        expected = kept.copy()
        assert context.set_sampler(0, first)
        with pytest.raises(IndexError):
            context.sampled_token_ith()  # nothing is decoded yet
        context.kv_cache_clear()
        context.decode(Batch.get_one(TOKENS))
        token = context.sampled_token_ith()
        assert token == int(expected.argmax())
        with Sampler.chain([Sampler.greedy()]) as second:
            assert context.set_sampler(0, second)
        gc.collect()  # both are closed, and the context goes on
        context.kv_cache_clear()
        context.decode(Batch.get_one(TOKENS))
        assert context.sampled_token_ith() == token
        assert context.set_sampler(0, None)
        assert context.set_sampler(0, None)
        context.kv_cache_clear()
        context.decode(Batch.get_one(TOKENS))
        assert context.sampled_token_ith() is None
        np.testing.assert_allclose(context.get_logits_ith(-1), expected, atol=bounds.ORDER)
        np.testing.assert_array_equal(kept, expected)


def test_the_context_keeps_the_chain(dense: Model) -> None:
    context = dense.new_context(SMALL, samplers={0: Sampler.chain([Sampler.top_k(4), Sampler.dist(1)])})
    gc.collect()
    with context:
        tokens = [piece.token for piece in context.generate(TOKENS, max_tokens=8)]
        assert len(tokens) >= 1


def test_no_part_is_attached_without_its_chain(dense: Model) -> None:
    outer = Sampler.chain([Sampler.chain([Sampler.dist(1)])])
    with pytest.raises(SamplerError, match="belongs to another chain"):
        dense.new_context(SMALL, samplers={0: outer[0]})
    with dense.new_context(SMALL) as context:
        with pytest.raises(SamplerError, match="belongs to another chain"):
            context.set_sampler(0, outer[0])
        assert context.set_sampler(0, outer[0].clone())
        assert context.set_sampler(0, outer)  # which was not attached
        with pytest.raises(ClosedError, match="belongs to a chain"):
            Sampler.chain([outer[0]])
        with pytest.raises(SamplerError, match="attached"):
            Sampler.chain([outer])


def test_a_context_lets_go_of_chains_that_it_no_longer_runs(dense: Model) -> None:
    with dense.new_context(SMALL) as context:
        context.decode(Batch.get_one(TOKENS))
        gc.collect()
        alive = lib.moebind_owned_alive()
        for seed in range(5):
            assert context.set_sampler(0, Sampler.chain([Sampler.dist(seed)]))
            context.decode(Batch.get_one([8]))
        context.set_sampler(0, None)
        gc.collect()
        assert lib.moebind_owned_alive() == alive


def test_a_chain_is_attached_once(dense: Model) -> None:
    with Sampler.chain([Sampler.top_k(4), Sampler.dist(3)]) as chain:
        with dense.new_context(TWO, samplers={0: chain}) as context:
            for again in (
                lambda: context.set_sampler(1, chain),
                lambda: context.set_sampler(0, chain),
                lambda: dense.new_context(SMALL, samplers={0: chain}),
                lambda: Sampler.chain([chain]),
            ):
                with pytest.raises(SamplerError, match="clone"):
                    again()
            context.set_sampler(0, None)
            with pytest.raises(SamplerError, match="was"):
                context.set_sampler(0, chain)
            assert context.set_sampler(1, chain.clone())
        with pytest.raises(SamplerError, match="twice"):
            fresh = chain.clone()
            dense.new_context(TWO, samplers={0: fresh, 1: fresh})


def test_a_chain_chooses_for_its_sequence(dense: Model) -> None:
    # Elsewhere libllama would skip what it takes for done in the graph, and choose nothing.
    chain = Sampler.chain([Sampler.temp(0), Sampler.dist(1)])
    with chain, dense.new_context(TWO, samplers={1: chain}) as context, dense.new_context(SMALL) as other:
        batch = Batch(2)
        batch.extend([1, 1], [0, 0], [0, 1], True)
        context.decode(batch)
        assert chain.sample(context, 1) == context.sampled_token_ith(1)
        with pytest.raises(SamplerError, match="another sequence"):
            chain.sample(context, 0)
        other.decode(Batch.get_one(TOKENS))
        with pytest.raises(SamplerError, match="clone"):
            chain.sample(other)
        assert chain.clone().sample(other) == int(other.get_logits_ith(-1).argmax())
        context.set_sampler(1, None)
        context.kv_cache_clear()
        context.decode(Batch.get_one(TOKENS))
        with pytest.raises(SamplerError, match="ran"):
            chain.sample(context)


def test_a_chain_that_only_filters_does_not_generate(dense: Model) -> None:
    with dense.new_context(SMALL, samplers={0: Sampler.chain([Sampler.top_k(4)])}) as context:
        with pytest.raises(SamplerError, match="does not choose"):
            context.generate(TOKENS)
        with Sampler.dist(1) as sampler:
            assert list(context.generate(TOKENS, sampler=sampler, max_tokens=2))


def test_a_temperature_of_zero_comes_last_but_one(dense: Model) -> None:
    # It leaves one candidate, of a shape that other samplers assert against.
    best = int(logits_of(dense).argmax())
    chain = Sampler.chain([Sampler.top_k(5), Sampler.temp(0), Sampler.dist(1)])
    with dense.new_context(SMALL, samplers={0: chain}) as context:
        context.decode(Batch.get_one(TOKENS))
        assert context.sampled_token_ith() == best
    for after in (Sampler.top_k(2), Sampler.top_p(0.5), Sampler.min_p(0.5), Sampler.temp(0.5)):
        with pytest.raises(SamplerError, match="one candidate"):
            dense.new_context(SMALL, samplers={0: Sampler.chain([Sampler.temp(0), after, Sampler.greedy()])})


def test_greedy_comes_first(dense: Model) -> None:
    # After a filter, llama.cpp gives its choice's place among the candidates for the token.
    for before in (Sampler.top_k(4), Sampler.top_p(0.5), Sampler.temp(0), Sampler.chain([Sampler.top_k(4)])):
        with pytest.raises(SamplerError, match="greedy cannot run"):
            dense.new_context(SMALL, samplers={0: Sampler.chain([before, Sampler.greedy()])})
    biases = Sampler.chain([Sampler.temp(0.5), Sampler.min_p(0.1), Sampler.greedy()])
    with dense.new_context(SMALL, samplers={0: biases}) as context:
        context.decode(Batch.get_one(TOKENS))
        assert context.sampled_token_ith() == int(logits_of(dense).argmax())


def test_accepted_tokens_are_in_the_vocabulary(dense: Model) -> None:
    # In the graph, penalties scatter over the vocabulary, and a token beyond it would write elsewhere.
    params = SMALL.with_n_outputs_max_per_seq(1)

    def chain() -> Sampler:
        return Sampler.chain([Sampler.penalties(8, 1.5, n_vocab=dense.n_vocab), Sampler.greedy()])

    early = chain()
    early.accept(10**6)
    with pytest.raises(SamplerError, match="accepted token 1000000"):
        dense.new_context(params, samplers={0: early})
    attached = chain()
    with dense.new_context(params, samplers={0: attached}) as context:
        for accept in (attached.accept, attached[0].accept, lambda token: attached.accept_many([token])):
            with pytest.raises(ValueError, match="token"):
                accept(dense.n_vocab)
        context.decode(Batch.get_one(TOKENS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampler.greedy(), "not a chain"),
        (lambda: Sampler.chain([]), "empty"),
        (lambda: Sampler.chain([Sampler.top_k(10**6), Sampler.greedy()]), "candidates"),
        (lambda: Sampler.chain([Sampler.top_k(4), Sampler.top_k(5)]), "4 candidates"),
        (lambda: Sampler.chain([Sampler.chain([Sampler.top_k(4)]), Sampler.top_k(5)]), "4 candidates"),
        (lambda: Sampler.chain([Sampler.top_k(9), Sampler.top_p(0.9), Sampler.top_k(5)]), "only two"),
        (lambda: Sampler.chain([Sampler.top_k(9), Sampler.chain([Sampler.top_k(8), Sampler.top_k(5)])]), "only two"),
        (lambda: Sampler.chain([Sampler.penalties(4, 1.5), Sampler.greedy()]), "n_vocab"),
        (lambda: Sampler.chain([Sampler.penalties(4, 1.5, n_vocab=7), Sampler.greedy()]), "vocabulary of 7"),
    ],
)
def test_chains_that_do_not_fit(dense: Model, make, message: str) -> None:  # type: ignore[no-untyped-def]
    params = SMALL.with_n_outputs_max_per_seq(1)
    with pytest.raises(SamplerError, match=message):
        dense.new_context(params, samplers={0: make()})
    with dense.new_context(params) as context:
        with pytest.raises(SamplerError, match=message):
            context.set_sampler(0, make())
        context.decode(Batch.get_one(TOKENS))


def test_grammars_and_samplers_in_python_are_not_run_in_the_graph(dense: Model) -> None:
    for part in (
        Sampler.grammar(dense, "root ::= [a-z]*"),
        Sampler.from_callable(lambda candidates: candidates.sort(), name="?nothing"),
        Sampler.chain([Sampler.from_callable(lambda candidates: candidates.sort(), name="temp")]),
    ):
        with pytest.raises(SamplerError, match="cannot be in a chain that a context runs"):
            dense.new_context(SMALL, samplers={0: Sampler.chain([part, Sampler.greedy()])})
    biases = Sampler.chain([Sampler.logit_bias({dense.n_vocab: 1.0}), Sampler.greedy()])
    with pytest.raises(SamplerError, match="the vocabulary ends at"):
        dense.new_context(SMALL, samplers={0: biases})


@pytest.mark.parametrize("samplers", [3, [], "a", {0: None}, {0: 3}, {"a": Sampler.greedy()}])
def test_samplers_of_the_wrong_type(dense: Model, samplers: object) -> None:
    with pytest.raises(TypeError):
        dense.new_context(SMALL, samplers=samplers)  # type: ignore[arg-type]


@pytest.mark.parametrize("seq_id", [-1, 1, 2**31])
def test_sequences_that_there_are_not(dense: Model, seq_id: int) -> None:
    with Sampler.chain([Sampler.greedy()]) as chain:
        with pytest.raises(ValueError, match="0 to 0"):
            dense.new_context(SMALL, samplers={seq_id: chain})
        with dense.new_context(SMALL) as context, pytest.raises(ValueError, match="seq_id"):
            context.set_sampler(seq_id, chain)


def test_closed_chains_and_contexts(dense: Model, context: Context) -> None:
    chain = Sampler.chain([Sampler.greedy()])
    chain.close()
    with pytest.raises(ClosedError):
        context.set_sampler(0, chain)
    with pytest.raises(ClosedError):
        dense.new_context(SMALL, samplers={0: chain})
    context.close()
    with pytest.raises(ClosedError):
        context.set_sampler(0, None)
    for read in (
        context.sampled_token_ith,
        context.sampled_probs_ith,
        context.sampled_logits_ith,
        context.sampled_candidates_ith,
    ):
        with pytest.raises(ClosedError):
            read()


def test_nothing_is_sampled_without_a_chain(context: Context) -> None:
    with pytest.raises(IndexError):
        context.sampled_token_ith()
    context.decode(Batch.get_one(TOKENS))
    assert context.sampled_token_ith() is None
    assert context.sampled_probs_ith() is None
    assert context.sampled_logits_ith() is None
    assert context.sampled_candidates_ith() is None
    for bad in (0, len(TOKENS), -2, 2**31 - 1):
        with pytest.raises(IndexError):
            context.sampled_logits_ith(bad)
    with pytest.raises(TypeError):
        context.sampled_token_ith("a")  # type: ignore[arg-type]
