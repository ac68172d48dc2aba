"""Candidates: tokens with their logits, and what is chosen among them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from samplers import LOGITS, any_logits, apply

from moebind import Sampler, TokenDataArray
from moebind.sampling.candidates import TOKEN_DATA


@given(any_logits)
def test_greedy_is_argmax(logits: list[float]) -> None:
    assert TokenDataArray.from_logits(logits).sample_token_greedy() == int(np.argmax(np.array(logits, np.float32)))


def test_seeds_repeat() -> None:
    logits = np.zeros(1000, np.float32)
    chosen = [TokenDataArray.from_logits(logits).sample_token(seed) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    with Sampler.dist(5) as fixed, Sampler.greedy() as greedy:
        assert fixed.seed == 5
        assert greedy.seed is None


def test_apply_does_not_copy() -> None:
    data = np.zeros(5, TOKEN_DATA)
    data["id"], data["logit"] = np.arange(5), [1, 2, 3, 4, 5]
    candidates = TokenDataArray(data)
    with Sampler.temp(2.0) as sampler:
        candidates.apply_sampler(sampler)
    np.testing.assert_allclose(data["logit"], [0.5, 1, 1.5, 2, 2.5])
    candidates.data["logit"][0] = 9
    assert data["logit"][0] == 9


def test_candidates_are_an_array() -> None:
    candidates = TokenDataArray([(3, 1.0, 0.0), (9, 2.0, 0.0)])
    assert len(candidates) == 2
    assert candidates.selected is candidates.selected_token is None
    assert not candidates.sorted
    with Sampler.top_k(1) as sampler:
        assert candidates.with_sampler(sampler) is candidates
    assert candidates.data["id"].tolist() == [9]
    assert "1 candidates" in repr(candidates)
    for bad in ([], np.zeros((2, 2), TOKEN_DATA)):
        with pytest.raises(ValueError, match="shape"):
            TokenDataArray(bad)
    with pytest.raises(ValueError, match="shape"):
        TokenDataArray.from_logits(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda c: c.keep([]), ValueError, "empty"),
        (lambda c: c.keep(np.zeros(5, bool)), ValueError, "names 0 of 5"),
        (lambda c: c.keep(slice(9, None)), ValueError, "names 0"),
        (lambda c: c.keep(np.ones(4, bool)), IndexError, "bool"),
        (lambda c: c.keep([7]), IndexError, "out of bounds"),
        (lambda c: c.keep([1.5]), TypeError, "float64"),
        (lambda c: c.keep([[1]]), TypeError, "shape"),
        (lambda c: c.keep([0] * 6), ValueError, "names 6 of 5"),
        (lambda c: c.select(9), ValueError, "not among the 5"),
        (lambda c: c.select("a"), TypeError, "token"),
        (lambda c: setattr(c, "selected", 5), ValueError, "0 to 4"),
        (lambda c: setattr(c, "selected", -1), ValueError, "0 to 4"),
        (lambda c: setattr(c, "selected", True), TypeError, "integer"),
    ],
)
def test_bad_edits(use, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        use(TokenDataArray.from_logits(LOGITS))
    with Sampler.from_callable(use) as sampler, pytest.raises(error, match=message):
        apply(sampler)


def test_keeping_follows_the_choice() -> None:
    candidates = TokenDataArray.from_logits(LOGITS)
    candidates.selected = 3
    candidates.keep([4, 3, 1])
    assert candidates.data["id"].tolist() == [4, 3, 1]
    assert candidates.selected_token == 3
    candidates.keep(candidates.data["logit"] > 3.5)
    assert candidates.selected is None
    assert candidates.sample_token_greedy() == 1
    candidates.selected = None
    assert candidates.selected_token is None
