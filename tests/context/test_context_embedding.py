"""Embeddings and scores: of tokens, of sequences, and of texts in batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bounds
import encoders
import numpy as np
import pytest
import tiny  # put on the path by conftest.py
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pooled import APART, EMBEDDING, POOLED, SEQUENCES, of_tokens, pooled

from moebind import Model, PoolingType


def test_embeddings_are_those_of_the_model(bert: Model) -> None:
    shape = tiny.Shape(arch="bert", n_head_kv=4, n_ctx_train=64)
    tensors = tiny._tensors(shape, np.random.default_rng(shape.seed))
    random = np.random.default_rng(3)
    moved = []
    for tokens, rows in zip(SEQUENCES, of_tokens(bert, SEQUENCES), strict=True):
        expected = encoders.bert(tensors, tokens)
        np.testing.assert_allclose(rows, expected, rtol=0, atol=bounds.GELU)
        moved += [encoders.bert(tensors, tokens, activation=encoders.tipped(random)) - expected for _ in range(30)]
    # What the bound is for: no processor can do more to the lookups than this.
    assert bounds.GELU / 10 < max(np.abs(each).max() for each in moved) < bounds.GELU


@pytest.mark.parametrize("name", list(APART))
def test_pooling_is_what_numpy_makes_of_the_tokens(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    rows = of_tokens(model, SEQUENCES)
    expected = {
        PoolingType.MEAN: np.array([each.mean(axis=0) for each in rows]),
        PoolingType.CLS: np.array([each[0] for each in rows]),
        PoolingType.LAST: np.array([each[-1] for each in rows]),
    }
    for pooling in POOLED:
        found = pooled(model, pooling, SEQUENCES)
        np.testing.assert_allclose(found, expected[pooling], atol=APART[name])
        # Another pooling, or another sequence, is another vector by far. (A decoder's first tokens are the same.)
        others = [expected[other] for other in POOLED if other is not pooling]
        others += [expected[pooling][[1, 2, 0]]] if pooling is PoolingType.MEAN else []
        assert min(np.abs(found - other).max(axis=1).min() for other in others) > 100 * APART[name]


def test_an_encoder_sees_what_comes_after(bert: Model, silu: Model, dense: Model) -> None:
    for model, apart in ((bert, bounds.GELU), (silu, bounds.ORDER)):
        first = of_tokens(model, [[1, 7, 8], [1, 7, 9]])
        assert np.abs(first[0][1] - first[1][1]).max() > 10 * apart
    first = of_tokens(dense, [[1, 7, 8], [1, 7, 9]])
    np.testing.assert_allclose(first[0][1], first[1][1], rtol=0, atol=bounds.ORDER)


@pytest.mark.parametrize("name", list(APART))
def test_sequences_of_one_batch_do_not_see_each_other(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    together = of_tokens(model, SEQUENCES)
    for rows, tokens in zip(together, SEQUENCES, strict=True):
        np.testing.assert_allclose(rows, of_tokens(model, [tokens])[0], rtol=0, atol=APART[name])


# --- scores ---


def test_rank_is_the_head_over_the_first_token(ranker: Model, tiny_path: Callable[..., Path]) -> None:
    from gguf import GGUFReader

    path = tiny_path(arch="bert", n_head_kv=4, n_ctx_train=64, n_cls_out=3)
    tensors = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}
    first = [rows[0] for rows in of_tokens(ranker, SEQUENCES)]
    expected = np.array(first) @ tensors["cls.output.weight"].T + tensors["cls.output.bias"]
    scores = pooled(ranker, PoolingType.RANK, SEQUENCES)
    assert scores[0].shape == (3,)
    np.testing.assert_allclose(scores, expected, atol=bounds.GELU)
    assert np.abs(np.array(scores) - expected[[1, 2, 0]]).max(axis=1).min() > 10 * bounds.GELU


# --- in batches ---


@pytest.mark.parametrize("name", list(APART))
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rows=st.lists(st.lists(st.integers(0, 290), min_size=1, max_size=20), max_size=9), n_seq_max=st.integers(1, 4))
def test_batches_do_not_change_embeddings(
    request: pytest.FixtureRequest, name: str, rows: list[list[int]], n_seq_max: int
) -> None:
    model: Model = request.getfixturevalue(name)
    params = EMBEDDING.with_n_ubatch(24).with_n_batch(24).with_n_seq_max(n_seq_max)
    if name == "dense":
        params = params.with_pooling_type(PoolingType.MEAN)
    got = model.embed(rows, context_params=params)
    assert got.shape == (len(rows), model.n_embd_out)
    for row, vector in zip(rows, got, strict=True):
        np.testing.assert_allclose(vector, pooled(model, PoolingType.MEAN, [row])[0], rtol=0, atol=APART[name])
