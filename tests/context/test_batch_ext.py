"""Extended batches: tokens, embeddings, or both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bounds
import numpy as np
import pytest

from conftest import CPU, EXACT, SMALL
from moebind import (
    Batch,
    BatchError,
    BatchExt,
    ClosedError,
    Context,
    DecodeError,
    Model,
    NoKvSlotError,
    PoolingType,
    ProcessType,
)

TOKENS = [1, 7, 8, 9]


def filled(context: Context, tokens: list[int], seq: int = 0) -> BatchExt:
    batch = BatchExt(context)
    for pos, token in enumerate(tokens):
        assert batch.add(seq, pos, token=token, output=pos == len(tokens) - 1) == pos
    return batch


def test_tokens_are_decoded(dense: Model) -> None:
    with dense.new_context(SMALL) as context:
        context.decode(Batch.get_one(TOKENS))
        expected = context.get_logits_ith(-1).copy()
        context.kv_cache_clear()
        with filled(context, TOKENS) as batch:
            assert (len(batch), batch.n_tokens, batch.n_outputs(), batch.capacity) == (4, 4, 1, context.n_batch)
            assert batch.pos.tolist() == [0, 1, 2, 3]
            assert batch.logits.tolist() == [0, 0, 0, 1]
            context.process(batch)
            np.testing.assert_array_equal(context.get_logits_ith(3), expected)
            with pytest.raises(IndexError):
                context.get_logits_ith(0)
            batch.clear()
            assert len(batch) == 0
            batch.add([0], 4, token=5, output=True)
            context.process(batch, ProcessType.DECODE)
            assert context.kv_cache_seq_pos_max(0) == 4


def test_embeddings_are_decoded(dense: Model) -> None:
    vectors = np.random.default_rng(1).standard_normal((3, dense.n_embd)).astype(np.float32)
    with dense.new_context(SMALL) as context:
        context.decode(Batch.from_embeddings(vectors, logits=[0, 0, 1]))
        expected = context.get_logits_ith(-1).copy()
        context.kv_cache_clear()
        batch = BatchExt(context)
        for pos, vector in enumerate(vectors.astype(np.float64)[:, ::1]):
            batch.add(0, pos, embedding=vector[::1], output=pos == 2)
        context.process(batch)
        np.testing.assert_array_equal(context.get_logits_ith(-1), expected)


def test_entries_are_of_one_kind(dense: Model) -> None:
    vector = np.zeros(dense.n_embd, np.float32)
    with dense.new_context(SMALL) as context:
        batch = filled(context, [1])
        for other in ({"embedding": vector}, {"token": 5, "embedding": vector}):
            with pytest.raises(BatchError, match="have the same"):
                batch.add(0, 1, **other)
        assert len(batch) == 1
        context.process(batch)


def test_a_token_can_have_an_embedding_too(dense: Model) -> None:
    # Models that have no use for both take one of them.
    with dense.new_context(SMALL) as context:
        batch = BatchExt(context)
        batch.add(0, 0, token=5, embedding=np.ones(dense.n_embd), output=True)
        context.process(batch)
        assert np.isfinite(context.get_logits_ith(-1)).all()


def test_widths_are_the_models(dense: Model) -> None:
    with dense.new_context(SMALL) as context:
        batch = BatchExt(context)
        with pytest.raises(BatchError, match="of 3 numbers"):
            batch.add(0, 0, embedding=[1.0, 2.0, 3.0])
        assert len(batch) == 0
        batch.add(0, 0, embedding=np.ones((2, dense.n_embd // 2)), output=True)
        context.process(batch)


def test_decode_and_encode_take_plain_batches(dense: Model) -> None:
    with dense.new_context(SMALL) as context:
        for method in (context.decode, context.encode):
            with pytest.raises(TypeError, match=r"process\(\) takes it"):
                method(filled(context, [1]))  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="takes a Batch"):
                method([1, 2])  # type: ignore[arg-type]


def test_sequences(dense: Model) -> None:
    with dense.new_context(EXACT.with_n_seq_max(2).with_kv_unified(True)) as context:
        batch = BatchExt(context)
        batch.add([0, 1], 0, token=1)
        batch.add(0, 1, token=7, output=True)
        batch.add(1, 1, token=8, output=True)
        context.process(batch)
        rows = context.get_logits().copy()
        for row, token in zip(rows, (7, 8), strict=True):
            context.kv_cache_clear()
            context.decode(Batch.get_one([1, token]))
            np.testing.assert_allclose(context.get_logits_ith(-1), row, atol=bounds.ORDER)


def test_encoders_process_too(tiny_path: Callable[..., Path], dense: Model) -> None:
    params = SMALL.with_embeddings(True).with_pooling_type(PoolingType.NONE)
    with Model.load_from_file(tiny_path(arch="bert", n_head_kv=4, n_ctx_train=64), CPU) as bert:
        with bert.new_context(params) as context:
            context.encode(Batch.get_one(TOKENS))
            expected = context.get_embeddings().copy()
            for kind in ProcessType.ENCODE, ProcessType.DECODE:
                context.process(filled(context, TOKENS), kind)
                np.testing.assert_array_equal(context.get_embeddings(), expected)
            batch = BatchExt(context)
            batch.add(0, 64, token=5)
            with pytest.raises(BatchError, match="position 64"):
                context.process(batch)
    with dense.new_context(SMALL) as context, pytest.raises(BatchError, match="no encoder"):
        context.process(filled(context, TOKENS), ProcessType.ENCODE)


def test_what_does_not_fit(dense: Model) -> None:
    with dense.new_context(SMALL.with_n_batch(4)) as context:
        batch = filled(context, TOKENS)
        with pytest.raises(BatchError, match="full"):
            batch.add(0, 4, token=5)
        context.process(batch)
        with pytest.raises(DecodeError):  # the same positions again
            context.process(batch)
        with pytest.raises(BatchError, match="0 tokens"):
            context.process(BatchExt(context))
        for pos in range(4, 256):
            batch.clear()
            batch.add(0, pos, token=5)
            context.process(batch)
        batch.clear()
        batch.add(0, 256, token=5)
        with pytest.raises(NoKvSlotError):
            context.process(batch)


def test_a_batch_is_for_its_context(dense: Model) -> None:
    with dense.new_context(SMALL) as context, dense.new_context(SMALL) as other:
        batch = filled(context, TOKENS)
        with pytest.raises(BatchError, match="another context"):
            other.process(batch)
        for wrong in (Batch.get_one(TOKENS), None, 3):
            with pytest.raises(TypeError, match="BatchExt"):
                context.process(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="Batch"):
            context.process(3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="type"):
            context.process(batch, 7)
    with pytest.raises(ClosedError):
        context.process(batch)
    with pytest.raises(ClosedError):
        BatchExt(context)
    batch.close()
    for use in (batch.clear, lambda: batch.add(0, 0, token=1), lambda: len(batch)):
        with pytest.raises(ClosedError):
            use()
    assert repr(batch) == "<BatchExt, closed>"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 0), {}, BatchError, "a token, an embedding"),
        ((1, 0), {"token": 5}, ValueError, "seq_ids"),
        ((-1, 0), {"token": 5}, ValueError, "seq_ids"),
        (([], 0), {"token": 5}, BatchError, "seq_ids is empty"),
        ((1.5, 0), {"token": 5}, TypeError, "seq_ids"),
        ((0, -1), {"token": 5}, ValueError, "pos"),
        ((0, 2**31 - 1), {"token": 5}, ValueError, "pos"),
        ((0, "a"), {"token": 5}, TypeError, "pos"),
        ((0, [0, 1]), {"token": 5}, BatchError, "takes 1"),
        ((0, []), {"token": 5}, BatchError, "takes 1"),
        ((0, 0), {"token": -1}, ValueError, "token"),
        ((0, 0), {"token": 10**6}, ValueError, "token"),
        ((0, 0), {"token": "a"}, TypeError, "token"),
        ((0, 0), {"embedding": "a"}, TypeError, "embedding"),
        ((0, 0), {"embedding": []}, BatchError, "embedding"),
        ((0, 0), {"embedding": [[1.0], [1.0, 2.0]]}, BatchError, "embedding"),
        ((0, 0), {"embedding": np.zeros((2, 2, 2))}, BatchError, "embedding"),
        ((0, 0), {"embedding": 1.0}, BatchError, "embedding"),
        ((0, 0), {"token": 5, "output": 1}, TypeError, "output"),
    ],
)
def test_bad_entries(
    context: Context,
    arguments: tuple[object, ...],
    options: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    batch = filled(context, [1])
    with pytest.raises(error, match=message):
        batch.add(*arguments, **options)  # type: ignore[arg-type]
    assert len(batch) == 1
    context.process(batch)
