"""Probabilities of tokens, as the model has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bounds import ORDER

from conftest import EXACT, SMALL
from moebind import Batch, Context, Model, Sampler, SamplerError, TokenLogprob
from moebind.context.scores import score

PROMPT = [1, 7, 8, 9]


def expected(model: Model, tokens: list[int]) -> np.ndarray[Any, Any]:
    """The logarithms of all probabilities after these tokens, computed by themselves."""
    with model.new_context(EXACT) as context:
        context.decode(Batch.get_one(tokens))
        logits = context.get_logits_ith(-1).astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def test_they_are_of_the_model_whatever_chooses(dense: Model) -> None:
    chains: list[dict[str, Any]] = [
        {},
        {"temperature": 1.5, "top_k": 3, "seed": 1},
        {"sampler": Sampler.chain([Sampler.logit_bias({270: 50.0}), Sampler.greedy()])},
        {"json_schema": {"type": "integer"}},
    ]
    for options in chains:
        with dense.new_context(EXACT) as context:
            completion = context.generate(PROMPT, max_tokens=3, logprobs=4, **options).complete()
        tokens = [*PROMPT]
        for piece in completion.pieces:
            logprobs = expected(dense, tokens)
            assert piece.logprob == pytest.approx(logprobs[piece.token], abs=ORDER)
            assert [each.logprob for each in piece.top] == pytest.approx(sorted(logprobs)[::-1][:4], abs=ORDER)
            assert piece.top[0] == TokenLogprob(
                piece.top[0].token, dense.token_to_str(piece.top[0].token, special=True), piece.top[0].logprob
            )
            tokens.append(piece.token)
        assert completion.logprobs == tuple(piece.logprob for piece in completion.pieces)


def test_how_many(dense: Model) -> None:
    with dense.new_context(SMALL) as context:
        plain = context.generate(PROMPT, max_tokens=5).complete()
        for logprobs, n in ((None, None), (False, None), (True, 0), (1, 1), (np.int64(3), 3), (dense.n_vocab,) * 2):
            pieces = context.generate(PROMPT, max_tokens=5, logprobs=logprobs).complete().pieces
            assert [piece.token for piece in pieces] == list(plain.tokens), "they change the text"
            for piece in pieces:
                assert (piece.logprob is None) == (n is None)
                assert len(piece.top) == (n or 0)
        chosen = context.generate(PROMPT, max_tokens=5, logprobs=1).complete()
        assert all(piece.top[0].token == piece.token for piece in chosen.pieces)


def test_of_many_prompts(dense: Model) -> None:
    prompts = [[1, 7, 8], {"prompt": [1, 5], "logprobs": None}, {"prompt": [1, 9, 9, 9], "logprobs": 2}]
    with dense.new_context(EXACT.with_n_seq_max(3).with_n_ctx(768)) as context:
        for seed in (None, 3):
            one, none, two = context.generate_many(prompts, max_tokens=3, logprobs=True, seed=seed).complete()
            assert none.logprobs is None
            for completion, prompt, n in ((one, [1, 7, 8], 0), (two, [1, 9, 9, 9], 2)):
                tokens = [*prompt]
                for piece in completion.pieces:
                    assert piece.logprob == pytest.approx(expected(dense, tokens)[piece.token], abs=ORDER)
                    assert len(piece.top) == n
                    tokens.append(piece.token)


def test_equal_ones_are_in_the_order_of_tokens(dense: Model) -> None:
    logits = np.zeros(dense.n_vocab, np.float32)
    logits[[5, 9]] = 1.0
    found = score(dense, logits, 9, 2)
    assert [each.token for each in found.top] == [5, 9]
    assert found.top[0].logprob == found.top[1].logprob == found.logprob
    logits[7] = -np.inf
    assert score(dense, logits, 7, 1).logprob == -np.inf


def test_a_chat(talking: Context) -> None:
    pieces = list(talking.chat([{"role": "user", "content": "Hello"}], max_tokens=3, logprobs=2))
    assert all(piece.logprob == piece.top[0].logprob and len(piece.top) == 2 for piece in pieces)


@pytest.mark.parametrize(
    ("logprobs", "error", "message"),
    [
        (0, ValueError, "takes True, for the probability of the chosen token, or how many"),
        (-1, ValueError, "logprobs is -1"),
        (10**6, ValueError, "1 to "),
        (1.5, TypeError, r"1\.5 \(float\); it takes True, False, or a number"),
        ("3", TypeError, "logprobs"),
    ],
)
def test_bad_arguments(dense: Model, logprobs: Any, error: type[Exception], message: str) -> None:
    with dense.new_context(SMALL) as context:
        for call in (
            lambda: context.generate(PROMPT, logprobs=logprobs),
            lambda: context.generate_many([PROMPT], logprobs=logprobs),
            lambda: context.generate_many([{"prompt": PROMPT, "logprobs": logprobs}]),
        ):
            with pytest.raises(error, match=message):
                call()


def test_backend_samplers_keep_the_logits(dense: Model) -> None:
    with dense.new_context(SMALL, samplers={0: Sampler.chain([Sampler.top_k(4), Sampler.dist(1)])}) as context:
        with pytest.raises(SamplerError, match=r"set_sampler\(0, None\)"):
            context.generate(PROMPT, logprobs=True)
        context.set_sampler(0, None)
        assert context.generate(PROMPT, logprobs=True, max_tokens=1).complete().logprobs
