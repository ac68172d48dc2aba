"""What a batch leaves: logits, embeddings, candidates, and how long views of them stay."""

from __future__ import annotations

import gc

import bounds
import numpy as np
import pytest
from pooled import EMBEDDING
from states import decode_all

from conftest import EXACT, SMALL
from moebind import AbortedError, Batch, BatchError, Context, EmbeddingsError, Model, PoolingType


def test_logits_of_every_token(context: Context, moe: Model) -> None:
    decode_all(context, [1, 5, 9])
    logits = context.get_logits()
    assert logits.shape == (3, moe.n_vocab)
    assert logits.dtype == np.float32
    assert not logits.flags.writeable
    for i in range(3):
        np.testing.assert_array_equal(context.get_logits_ith(i), logits[i])
        np.testing.assert_array_equal(context.get_logits_ith(i - 3), logits[i])
    with pytest.raises(ValueError, match="read-only"):
        logits[0, 0] = 1.0


@pytest.mark.parametrize("i", [1, 3, -2, 2**31 - 1, -(2**31) + 1])
def test_outputs_that_are_not_there(context: Context, i: int) -> None:
    context.decode(Batch.get_one([1, 5, 9]))
    assert context.get_logits_ith(2).size
    assert context.get_logits_ith(-1).size
    with pytest.raises(IndexError, match="i is"):
        context.get_logits_ith(i)


def test_there_are_no_outputs_before_a_batch_or_after_a_failed_one(context: Context) -> None:
    for read in (context.get_logits, lambda: context.get_logits_ith(0), context.token_data_array):
        with pytest.raises(IndexError, match="decode a batch"):
            read()
    context.decode(Batch.get_one([1]))
    context.abort()
    with pytest.raises(AbortedError):
        context.decode(Batch.get_one([1]))
    with pytest.raises(IndexError, match="decode a batch"):
        context.get_logits_ith(-1)


def test_a_batch_without_outputs(context: Context) -> None:
    batch = Batch(2)
    batch.extend([1, 2], 0, 0, False)
    context.decode(batch)
    with pytest.raises(IndexError):
        context.get_logits_ith(-1)


def test_views_outlive_what_they_show(moe: Model) -> None:
    context = moe.new_context(SMALL)
    decode_all(context, [1, 5])
    view = context.get_logits_ith(1)
    kept = view.copy()
    context.close()
    del context
    gc.collect()
    np.testing.assert_array_equal(view, kept)


def test_views_outlive_a_larger_output_buffer(moe: Model) -> None:
    with moe.new_context(SMALL) as context:
        context.decode(Batch.get_one([1, 5]))
        small = context.get_logits_ith(-1)
        kept = small.copy()
        for n in (10, 50, 200):
            context.kv_cache_clear()
            decode_all(context, [7] * n)
            assert context.get_logits().shape[0] == n
            np.testing.assert_array_equal(small, kept)
        shown = context.get_logits()
        context.set_embeddings(True)
        context.decode(Batch.get_one([3]))
        assert np.isfinite(shown).all()


def test_views_of_one_buffer_are_overwritten(context: Context) -> None:
    context.decode(Batch.get_one([1, 5]))
    view = context.get_logits_ith(-1)
    before = view.copy()
    context.decode(Batch.get_one([9]))
    assert np.abs(view - before).max() > 0
    np.testing.assert_array_equal(view, context.get_logits_ith(-1))


def test_candidates(context: Context, moe: Model) -> None:
    context.decode(Batch.get_one([1, 5]))
    candidates = context.token_data_array()
    logits = context.get_logits_ith(-1)
    assert len(candidates) == moe.n_vocab
    np.testing.assert_array_equal(candidates.data["logit"], logits)
    np.testing.assert_array_equal(candidates.data["id"], np.arange(moe.n_vocab))
    assert candidates.sample_token_greedy() == logits.argmax()
    assert next(iter(context.token_data_array_ith(1)))["logit"] == logits[0]


def test_embeddings_per_token(moe: Model) -> None:
    with moe.new_context(SMALL.with_embeddings(True)) as context:
        context.decode(Batch.get_one([1, 5, 9]))
        rows = [context.embeddings_ith(i).copy() for i in range(3)]
        assert all(row.shape == (moe.n_embd_out,) for row in rows)
        assert np.abs(rows[0] - rows[1]).max() > 0
        with pytest.raises(EmbeddingsError, match="does not pool"):
            context.embeddings_seq_ith(0)


@pytest.mark.parametrize("pooling", [PoolingType.MEAN, PoolingType.CLS, PoolingType.LAST])
def test_embeddings_per_sequence(moe: Model, pooling: PoolingType) -> None:
    with moe.new_context(EXACT.with_embeddings(True).with_pooling_type(PoolingType.NONE)) as plain:
        decode_all(plain, [1, 5, 9])
        rows = np.array([plain.embeddings_ith(i) for i in range(3)])
    with moe.new_context(EXACT.with_embeddings(True).with_pooling_type(pooling).with_n_seq_max(2)) as context:
        decode_all(context, [1, 5, 9])
        pooled = context.embeddings_seq_ith(0)
        expected = {"MEAN": rows.mean(0), "CLS": rows[0], "LAST": rows[-1]}[pooling.name]
        np.testing.assert_allclose(pooled, expected, atol=bounds.ORDER)
        with pytest.raises(EmbeddingsError, match="no sequence 1"):
            context.embeddings_seq_ith(1)
        with pytest.raises(ValueError, match="seq_id"):
            context.embeddings_seq_ith(2)


def test_embeddings_are_switched(context: Context) -> None:
    context.decode(Batch.get_one([1]))
    with pytest.raises(EmbeddingsError, match="embeddings=True"):
        context.embeddings_ith(0)
    context.set_embeddings(True)
    context.kv_cache_clear()
    context.decode(Batch.get_one([1]))
    assert context.embeddings_ith(0).any()
    context.set_embeddings(False)
    with pytest.raises(EmbeddingsError):
        context.embeddings_ith(0)


# --- outputs that there cannot be ---


def test_encoders_have_no_logits(bert: Model) -> None:
    with bert.new_context(EMBEDDING.with_pooling_type(PoolingType.NONE)) as context:
        context.decode(Batch.get_one([1, 7, 2]))
        for read in (context.get_logits, lambda: context.get_logits_ith(-1), context.token_data_array):
            with pytest.raises(IndexError, match="no logits"):
                read()
        with pytest.raises(BatchError, match="cannot generate"):
            context.generate([1, 7])
        with pytest.raises(BatchError, match="cannot generate"):
            context.generate_many([[1, 7]])


def test_pooled_contexts_have_no_token_embeddings(bert: Model) -> None:
    with bert.new_context(EMBEDDING.with_pooling_type(PoolingType.MEAN)) as context:
        context.decode(Batch.get_one([1, 7, 2]))
        for read in (context.get_embeddings, lambda: context.embeddings_ith(0)):
            with pytest.raises(EmbeddingsError, match="embeddings_seq_ith"):
                read()


def test_outputs_are_asked_for_before_they_are_read(bert: Model, dense: Model) -> None:
    with bert.new_context(EMBEDDING) as context:
        with pytest.raises(IndexError, match="decode a batch"):
            context.get_embeddings()
    with dense.new_context(SMALL) as context:
        context.decode(Batch.get_one([1]))
        with pytest.raises(EmbeddingsError, match="computes no embeddings"):
            context.get_embeddings()
