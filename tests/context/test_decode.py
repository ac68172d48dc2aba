"""Decoding and encoding: what is computed, and what is refused before libllama asserts it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import bounds
import numpy as np
import pytest
from engines import never_ends
from pooled import EMBEDDING, SEQUENCES, batch_of, pooled

from conftest import EXACT, SMALL
from moebind import (
    AbortedError,
    Batch,
    BatchError,
    BatchExt,
    ClosedError,
    Context,
    DecodeError,
    Model,
    NoKvSlotError,
    PoolingType,
    Sampler,
    lib,
)

REFUSED = (
    r"llama_decode returned -1: llama.cpp refused the batch: the tokens of sequence 0 in the input batch have "
    r"inconsistent sequence positions. The positions of a sequence must be consecutive, and continue what the cache "
    r"holds of it: the next one is kv_cache_seq_pos_max\(seq_id\) \+ 1:\n  llama.cpp: init: the tokens of "
    r"sequence 0 .*\n(?s:.*) X = 2\n"
)


def test_sequences_side_by_side(moe: Model) -> None:
    alone: list[np.ndarray] = []
    for tokens in ([1, 5, 9], [1, 7]):
        with moe.new_context(EXACT) as context:
            context.decode(Batch.get_one(tokens))
            alone.append(context.get_logits_ith(-1).copy())
    with moe.new_context(EXACT.with_n_seq_max(2).with_n_ctx(512)) as context:
        batch = Batch(5)
        batch.add_sequence([1, 5, 9], 0)
        batch.add_sequence([1, 7], 1)
        context.decode(batch)
        np.testing.assert_allclose(context.get_logits_ith(2), alone[0], atol=bounds.ORDER)
        np.testing.assert_allclose(context.get_logits_ith(4), alone[1], atol=bounds.ORDER)
        np.testing.assert_array_equal(context.get_logits()[1], context.get_logits_ith(4))


def test_decode_refuses_what_libllama_asserts(moe: Model) -> None:
    with moe.new_context(SMALL.with_n_batch(8).with_n_ubatch(4).with_n_seq_max(2)) as context:
        empty = Batch(2)
        large = Batch(9)
        large.add_sequence([1] * 9, 0)
        unknown = Batch(1)
        unknown.add(moe.n_vocab, 0, 0, True)
        elsewhere = Batch(1)
        elsewhere.add(1, 0, 2, True)
        negative = Batch(1)
        negative.add(1, 0, 0, True)
        negative.pos[0] = -3
        for batch, message in (
            (empty, "0 tokens; this context takes 1 to 8"),
            (large, "9 tokens; this context takes 1 to 8"),
            (unknown, "outside the vocabulary"),
            (elsewhere, "beyond 1: n_seq_max is 2"),
            (negative, "negative position"),
        ):
            with pytest.raises(BatchError, match=message):
                context.decode(batch)
        with pytest.raises(TypeError, match="Batch"):
            context.decode([1, 2, 3])  # type: ignore[arg-type]
        context.set_causal_attn(False)
        five = Batch(5)
        five.add_sequence([1] * 5, 0)
        with pytest.raises(BatchError, match="without causal attention, 4"):
            context.decode(five)
        context.set_causal_attn(True)
        context.decode(five)


def test_decode_refuses_too_many_outputs(moe: Model) -> None:
    with moe.new_context(SMALL.with_n_outputs_max(2)) as context:
        batch = Batch(3)
        batch.add_sequence([1, 2, 3], 0, logits_all=True)
        with pytest.raises(BatchError, match="3 outputs; this context takes 2"):
            context.decode(batch)


def test_no_room_leaves_the_context_as_it_was(moe: Model) -> None:
    with moe.new_context(SMALL) as context:
        n = context.n_ctx
        full = Batch(n)
        full.add_sequence(np.arange(n) % 200 + 3, 0)
        context.decode(full)
        with pytest.raises(NoKvSlotError, match="no room for 1 more") as caught:
            context.decode(Batch.get_one([1]))
        assert caught.value.code == 1
        assert context.kv_cache_seq_pos_max(0) == n - 1
        assert context.kv_cache_seq_rm(0, n // 2)
        context.decode(Batch.get_one([1]))


def test_positions_that_do_not_continue(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    context.decode(Batch.get_one([1, 2, 3]))
    gap = Batch(1)
    gap.add(1, 9, 0, True)
    caplog.clear()
    with pytest.raises(DecodeError, match=REFUSED) as caught:
        context.decode(gap)
    assert caught.value.code == -1
    # What the error quotes is not logged as one besides.
    assert "\n  llama.cpp: " in str(caught.value)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    context.decode(Batch.get_one([4]))


@pytest.mark.parametrize("way", ["decode", "process", "encode", "greedy", "sampled", "asynchronous", "interrupted"])
def test_what_is_aborted_is_an_exception_only(
    caplog: pytest.LogCaptureFixture, moe: Model, bert: Model, way: str
) -> None:
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        if calls >= 0:
            time.sleep(0.01)  # it is asked once in a while: at the next node, too
        if way == "interrupted" and calls == 3:
            raise KeyboardInterrupt
        return calls >= 3  # the first is before it begins: in the middle

    def begun() -> None:
        nonlocal calls
        calls = max(calls, 0)

    async def read(pieces: AsyncIterator[object]) -> None:
        async for _ in pieces:
            begun()

    model = bert if way == "encode" else moe
    with model.new_context(SMALL.with_abort_callback(stop)) as context:
        caplog.clear()
        calls = -(10**9)
        batch = Batch.get_one([5, 6, 7])
        with pytest.raises(KeyboardInterrupt if way == "interrupted" else AbortedError):
            if way in {"greedy", "sampled"}:
                drawn = Sampler.chain([never_ends(model), Sampler.temp(2.0), Sampler.dist(1)])
                for _ in context.generate("the", sampler=None if way == "greedy" else drawn):
                    begun()
            elif way == "asynchronous":
                asyncio.run(read(context.agenerate("the")))
            elif way == "process":
                extended = BatchExt(context)
                extended.add(0, 0, token=5)
                begun()
                context.process(extended)
            else:
                begun()
                (context.encode if way == "encode" else context.decode)(batch)
        assert calls >= 3
        calls = -(10**9)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_step_that_fails_quotes_what_was_said_of_it(caplog: pytest.LogCaptureFixture, moe: Model) -> None:
    with moe.new_context(SMALL) as context:
        pieces = context.generate("the")
        next(pieces)
        next(pieces)
        lib.llama_memory_seq_rm(lib.llama_get_memory(context.native), 0, 2, -1)  # behind its back
        with pytest.raises(DecodeError, match="llama.cpp: "):
            next(pieces)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_encoding_takes_an_encoder(context: Context) -> None:
    with pytest.raises(BatchError, match="no encoder"):
        context.encode(Batch.get_one([1]))


# --- encoders, and contexts that pool ---


def test_encode_is_decode_without_a_cache(bert: Model) -> None:
    with bert.new_context(EMBEDDING.with_pooling_type(PoolingType.NONE)) as context:
        context.encode(Batch.get_one(SEQUENCES[0]))
        encoded = context.get_embeddings().copy()
        context.decode(Batch.get_one(SEQUENCES[0]))
        np.testing.assert_array_equal(context.get_embeddings(), encoded)
        assert encoded.shape == (5, bert.n_embd_out)
        with pytest.raises(ValueError, match="read-only"):
            context.get_embeddings()[0] = 0


def test_positions_end_where_the_model_has_no_more(bert: Model) -> None:
    # Beyond its table of positions the CPU reads out of bounds, or ends the process from another thread.
    with bert.new_context(EMBEDDING.with_pooling_type(PoolingType.NONE)) as context:
        context.decode(Batch.get_one([5] * 64))
        with pytest.raises(BatchError, match="position 64"):
            context.decode(Batch.get_one([5] * 65))
        batch = Batch(1)
        batch.add(5, 64, 0, True)
        with pytest.raises(BatchError, match="position 64"):
            context.encode(batch)


def test_a_sequence_is_pooled_whole_or_not_at_all(dense: Model) -> None:
    params = EMBEDDING.with_pooling_type(PoolingType.MEAN).with_n_ubatch(4)
    with dense.new_context(params) as context:
        with pytest.raises(BatchError, match="pooled"):
            context.decode(Batch.get_one([1, 2, 3, 4, 5]))
        context.decode(Batch.get_one([1, 2, 3, 4]))
    apart = EMBEDDING.with_kv_unified(False).with_n_ctx(512).with_n_seq_max(2)
    with dense.new_context(apart.with_pooling_type(PoolingType.MEAN)) as context:
        with pytest.raises(BatchError, match="kv_unified=True"):
            context.decode(batch_of([[1, 2, 3], [1, 2]]))
        context.decode(batch_of([[1, 2, 3], [1, 5, 6]]))
        np.testing.assert_allclose(
            context.embeddings_seq_ith(1), pooled(dense, PoolingType.MEAN, [[1, 5, 6]])[0], atol=bounds.ORDER
        )


def test_encode_takes_an_encoder(dense: Model, t5: Model) -> None:
    with dense.new_context(SMALL) as context, pytest.raises(BatchError, match="no encoder"):
        context.encode(Batch.get_one([1]))
    with t5.new_context(EXACT.with_n_ubatch(4)) as context:
        with pytest.raises(BatchError, match="encoding takes 4"):
            context.encode(Batch.get_one([1, 2, 3, 4, 5]))
        with pytest.raises(TypeError, match="Batch"):
            context.encode([1])  # type: ignore[arg-type]
    with pytest.raises(ClosedError):
        context.encode(Batch.get_one([1]))
