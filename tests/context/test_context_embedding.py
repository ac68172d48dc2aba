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
from pooled import APART, EXACT, POOLED, SEQUENCES, batch_of, of_tokens, pooled, rewritten

from conftest import CPU, SMALL
from moebind import Batch, BatchError, ContextCreationError, EmbeddingsError, Model, PoolingType


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


def test_encode_is_decode_without_a_cache(bert: Model) -> None:
    with bert.new_context(EXACT.with_pooling_type(PoolingType.NONE)) as context:
        context.encode(Batch.get_one(SEQUENCES[0]))
        encoded = context.get_embeddings().copy()
        context.decode(Batch.get_one(SEQUENCES[0]))
        np.testing.assert_array_equal(context.get_embeddings(), encoded)
        assert encoded.shape == (5, bert.n_embd_out)
        with pytest.raises(ValueError, match="read-only"):
            context.get_embeddings()[0] = 0


def test_encoders_have_no_logits(bert: Model) -> None:
    with bert.new_context(EXACT.with_pooling_type(PoolingType.NONE)) as context:
        context.decode(Batch.get_one([1, 7, 2]))
        for read in (context.get_logits, lambda: context.get_logits_ith(-1), context.token_data_array):
            with pytest.raises(IndexError, match="no logits"):
                read()
        with pytest.raises(BatchError, match="cannot generate"):
            context.generate([1, 7])
        with pytest.raises(BatchError, match="cannot generate"):
            context.generate_many([[1, 7]])


def test_positions_end_where_the_model_has_no_more(bert: Model) -> None:
    # Beyond its table of positions the CPU reads out of bounds, or ends the process from another thread.
    with bert.new_context(EXACT.with_pooling_type(PoolingType.NONE)) as context:
        context.decode(Batch.get_one([5] * 64))
        with pytest.raises(BatchError, match="position 64"):
            context.decode(Batch.get_one([5] * 65))
        batch = Batch(1)
        batch.add(5, 64, 0, True)
        with pytest.raises(BatchError, match="position 64"):
            context.encode(batch)


def test_pooled_contexts_have_no_token_embeddings(bert: Model) -> None:
    with bert.new_context(EXACT.with_pooling_type(PoolingType.MEAN)) as context:
        context.decode(Batch.get_one([1, 7, 2]))
        for read in (context.get_embeddings, lambda: context.embeddings_ith(0)):
            with pytest.raises(EmbeddingsError, match="embeddings_seq_ith"):
                read()


def test_a_sequence_is_pooled_whole_or_not_at_all(dense: Model) -> None:
    params = EXACT.with_pooling_type(PoolingType.MEAN).with_n_ubatch(4)
    with dense.new_context(params) as context:
        with pytest.raises(BatchError, match="pooled"):
            context.decode(Batch.get_one([1, 2, 3, 4, 5]))
        context.decode(Batch.get_one([1, 2, 3, 4]))
    apart = EXACT.with_kv_unified(False).with_n_ctx(512).with_n_seq_max(2)
    with dense.new_context(apart.with_pooling_type(PoolingType.MEAN)) as context:
        with pytest.raises(BatchError, match="kv_unified=True"):
            context.decode(batch_of([[1, 2, 3], [1, 2]]))
        context.decode(batch_of([[1, 2, 3], [1, 5, 6]]))
        np.testing.assert_allclose(
            context.embeddings_seq_ith(1), pooled(dense, PoolingType.MEAN, [[1, 5, 6]])[0], atol=bounds.ORDER
        )


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


def test_rank_takes_a_head(bert: Model, dense: Model) -> None:
    for model in (bert, dense):
        with pytest.raises(ContextCreationError, match="classification head"):
            model.new_context(EXACT.with_pooling_type(PoolingType.RANK))
        with pytest.raises(EmbeddingsError, match="classification head"):
            model.rerank("a", ["b"])


def test_a_file_can_ask_for_scores_without_a_head(tmp_path: Path) -> None:
    shape = tiny.Shape(arch="bert", n_head_kv=4, n_ctx_train=64)
    path = rewritten(tmp_path / "model.gguf", shape, bert__pooling_type=int(PoolingType.RANK))
    with Model.load_from_file(path, CPU) as model:
        with pytest.raises(ContextCreationError, match="classification head"):
            model.new_context(EXACT)
        with model.new_context(EXACT.with_embeddings(False)) as context:
            with pytest.raises(EmbeddingsError, match="classification head"):
                context.set_embeddings(True)
        with pytest.raises(EmbeddingsError, match="scores texts"):
            model.embed("a")
        assert model.embed("a", pooling_type=PoolingType.CLS).shape == (1, model.n_embd_out)


# --- texts ---


@pytest.mark.parametrize("name", list(APART))
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rows=st.lists(st.lists(st.integers(0, 290), min_size=1, max_size=20), max_size=9), n_seq_max=st.integers(1, 4))
def test_batches_do_not_change_embeddings(
    request: pytest.FixtureRequest, name: str, rows: list[list[int]], n_seq_max: int
) -> None:
    model: Model = request.getfixturevalue(name)
    params = EXACT.with_n_ubatch(24).with_n_batch(24).with_n_seq_max(n_seq_max)
    if name == "dense":
        params = params.with_pooling_type(PoolingType.MEAN)
    got = model.embed(rows, context_params=params)
    assert got.shape == (len(rows), model.n_embd_out)
    for row, vector in zip(rows, got, strict=True):
        np.testing.assert_allclose(vector, pooled(model, PoolingType.MEAN, [row])[0], rtol=0, atol=APART[name])


def test_outputs_are_asked_for_before_they_are_read(bert: Model, dense: Model) -> None:
    with bert.new_context(EXACT) as context:
        with pytest.raises(IndexError, match="decode a batch"):
            context.get_embeddings()
    with dense.new_context(SMALL) as context:
        context.decode(Batch.get_one([1]))
        with pytest.raises(EmbeddingsError, match="computes no embeddings"):
            context.get_embeddings()
