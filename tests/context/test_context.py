"""Contexts: outputs, sequences, settings, threads."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bounds
import numpy as np
import pytest

from conftest import CPU, EXACT, SMALL
from moebind import (
    AbortedError,
    Batch,
    Context,
    ContextCreationError,
    ContextParams,
    EmbeddingsError,
    FlashAttnType,
    GgmlType,
    Model,
    MoebindError,
    PoolingType,
)

MakeTiny = Callable[..., Path]


def decode_all(context: Context, tokens: list[int], seq_id: int = 0) -> None:
    batch = Batch(len(tokens))
    batch.add_sequence(tokens, seq_id, logits_all=True)
    context.decode(batch)


# --- creation ---


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SMALL.with_n_seq_max(200).with_n_batch(64), "n_seq_max is 200"),
        (SMALL.with_n_outputs_max(1).with_n_seq_max(4), "n_seq_max is 4"),
        (SMALL.with_n_ctx(2**27), "GiB"),
        (SMALL.with_type_k(GgmlType.Q8_0).with_flash_attn_type(FlashAttnType.DISABLED), "in blocks of 32"),
        (SMALL.with_type_v(GgmlType.Q8_0).with_flash_attn_type(FlashAttnType.DISABLED), "llama.cpp: "),
    ],
)
def test_parameters_that_do_not_go_together(tiny_path: MakeTiny, params: ContextParams, message: str) -> None:
    with Model.load_from_file(tiny_path(n_layer=4, n_expert=4), CPU) as model:
        if "GiB" in message:
            params = params.with_n_ctx(2**27).with_type_k(GgmlType.F32).with_type_v(GgmlType.F32)
        with pytest.raises(ContextCreationError, match=message):
            model.new_context(params)
        with model.new_context(SMALL) as context:
            context.decode(Batch.get_one([1]))


def test_a_model_that_claims_a_longer_context_than_there_can_be(tiny_path: MakeTiny) -> None:
    params = CPU.with_kv_override("llama.context_length", 2**27 + 1)
    with Model.load_from_file(tiny_path(n_layer=4, n_expert=4), params) as model:
        with pytest.raises(ContextCreationError, match="model's own 134217729; at most 134217728"):
            model.new_context(SMALL.with_n_ctx(0))


def test_params_of_the_wrong_type(moe: Model) -> None:
    with pytest.raises(TypeError, match="ContextParams"):
        moe.new_context({"n_ctx": 256})  # type: ignore[arg-type]


def test_properties(moe: Model) -> None:
    params = ContextParams(n_ctx=500, n_batch=64, n_ubatch=16, n_seq_max=2, n_threads=1, n_threads_batch=2)
    with moe.new_context(params) as context:
        assert context.n_ctx == 512
        assert context.n_ctx_seq == 256
        assert (context.n_batch, context.n_ubatch, context.n_seq_max) == (64, 16, 2)
        assert (context.n_threads, context.n_threads_batch) == (1, 2)
        assert context.pooling_type is PoolingType.NONE
        assert context.params is params
        assert context.model is moe
        context.set_n_threads(2, 3)
        assert (context.n_threads, context.n_threads_batch) == (2, 3)
        with pytest.raises(ValueError, match="n_threads"):
            context.set_n_threads(0, 1)
        assert "n_ctx=512" in repr(context)


# --- outputs ---


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


# --- the cache ---


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


def test_cache_operations(moe: Model) -> None:
    with moe.new_context(SMALL.with_n_seq_max(3).with_kv_unified(True)) as context:
        assert (context.kv_cache_seq_pos_min(0), context.kv_cache_seq_pos_max(0)) == (-1, -1)
        decode_all(context, [1, 2, 3, 4])
        assert (context.kv_cache_seq_pos_min(0), context.kv_cache_seq_pos_max(0)) == (0, 3)
        context.kv_cache_seq_cp(0, 1, 0, 2)
        assert context.kv_cache_seq_pos_max(1) == 1
        assert context.kv_cache_seq_rm(0, 3)
        assert context.kv_cache_seq_pos_max(0) == 2
        assert context.kv_cache_can_shift()
        context.kv_cache_seq_add(0, 1, None, 5)
        assert context.kv_cache_seq_pos_max(0) == 7
        context.kv_cache_seq_div(0, 1, None, 2)
        assert context.kv_cache_seq_pos_max(0) == 3
        context.kv_cache_seq_keep(1)
        assert context.kv_cache_seq_pos_max(0) == -1
        assert context.kv_cache_seq_rm(-1)
        assert context.kv_cache_seq_pos_max(1) == -1
        context.kv_cache_clear()


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("kv_cache_seq_rm", (-2,)),
        ("kv_cache_seq_rm", (3,)),
        ("kv_cache_seq_rm", (0, -1)),
        ("kv_cache_seq_cp", (0, 3)),
        ("kv_cache_seq_cp", (-1, 0)),
        ("kv_cache_seq_keep", (255,)),
        ("kv_cache_seq_add", (-1, 0, 1, 1)),
        ("kv_cache_seq_add", (0, 0, 1, 2**31)),
        ("kv_cache_seq_div", (0, 0, 1, 0)),
        ("kv_cache_seq_div", (0, 0, 1, -1)),
        ("kv_cache_seq_pos_min", (3,)),
        ("kv_cache_seq_pos_max", (-1,)),
    ],
)
def test_cache_operations_out_of_range(moe: Model, call: str, arguments: tuple[int, ...]) -> None:
    with moe.new_context(SMALL.with_n_seq_max(3)) as context:
        decode_all(context, [1, 2])
        with pytest.raises(ValueError, match=r"is -?\d+; it takes"):
            getattr(context, call)(*arguments)
        assert context.kv_cache_seq_pos_max(0) == 1


def test_moving_beyond_the_last_position(context: Context) -> None:
    decode_all(context, [1, 2])
    with pytest.raises(ValueError, match="beyond"):
        context.kv_cache_seq_add(0, 0, None, 2**31 - 2)


def test_parts_of_separate_caches_cannot_be_copied(moe: Model) -> None:
    with moe.new_context(SMALL.with_n_seq_max(2)) as context:
        decode_all(context, [1, 2, 3])
        with pytest.raises(ValueError, match="only be copied whole"):
            context.kv_cache_seq_cp(0, 1, 1, 2)
        context.kv_cache_seq_cp(0, 1)
        assert context.kv_cache_seq_pos_max(1) == 2


def test_bf16_caches_cannot_be_moved(moe: Model) -> None:
    with moe.new_context(SMALL.with_type_k(GgmlType.BF16)) as context:
        decode_all(context, [1, 2])
        assert not context.kv_cache_can_shift()
        with pytest.raises(MoebindError, match="cannot be moved"):
            context.kv_cache_seq_add(0, 0, None, 1)


# --- time, memory, threads ---


def test_timings(context: Context) -> None:
    decode_all(context, [1, 2, 3])
    context.decode(Batch.get_one([4]))
    context.get_logits_ith(-1)
    timings = context.timings()
    assert (timings.n_p_eval, timings.n_eval) == (3, 1)
    assert timings.t_p_eval_ms > 0
    assert timings.tokens_per_second > 0
    assert "decode 1 tokens" in str(timings)
    context.reset_timings()
    assert context.timings().t_p_eval_ms == 0


def test_memory_breakdown(context: Context, moe: Model) -> None:
    breakdown = context.memory_breakdown()
    assert breakdown.device_bytes == 0
    assert breakdown.host.model >= moe.size * 0.9
    assert breakdown.host.context > 0
    assert breakdown.host_bytes == breakdown.host.total == sum(buffer.total for buffer in breakdown.host.buffers)
    assert "Host" in str(breakdown)
    assert breakdown.reduction_vs(breakdown) == 0.0


def test_threads_on_one_context_wait_for_each_other(moe: Model) -> None:
    failures: list[BaseException] = []
    with moe.new_context(SMALL.with_n_seq_max(4).with_n_ctx(1024)) as context:

        def work(seq_id: int) -> None:
            try:
                for _ in range(30):
                    batch = Batch(4)
                    batch.add_sequence([1, 5, 9, 3], seq_id)
                    context.decode(batch)
                    context.kv_cache_seq_rm(seq_id)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seq_id,)) for seq_id in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_contexts_work_in_parallel_and_the_gil_is_free(moe: Model) -> None:
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        with moe.new_context(SMALL) as context:
            results[number] = [piece.token for piece in context.generate("the cat", max_tokens=20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(tokens == results[0] for tokens in results.values())


def long_prompt(demo: Model) -> np.ndarray:
    return demo.str_to_token("All work and no play makes Jack a dull boy. " * 300)[:2000]


def test_abort_from_another_thread(demo: Model) -> None:
    with demo.new_context(SMALL.with_n_ctx(2048).with_n_batch(2048)) as context:
        started = time.monotonic()
        timer = threading.Timer(0.2, context.abort)
        timer.start()
        with pytest.raises(AbortedError) as caught:
            context.decode(Batch.get_one(long_prompt(demo)))
        assert caught.value.code == 2
        timer.join()
        assert time.monotonic() - started < 5
        context.kv_cache_clear()
        assert "".join(piece.text for piece in context.generate("The capital of France is", max_tokens=1)) == " Paris"


def test_abort_callback(demo: Model) -> None:
    calls: list[int] = []
    stop = SMALL.with_n_ctx(2048).with_n_batch(2048).with_abort_callback(lambda: calls.append(1) or len(calls) > 3)  # type: ignore[func-returns-value]
    with demo.new_context(stop) as context, pytest.raises(AbortedError):
        context.decode(Batch.get_one(long_prompt(demo)))
    assert len(calls) == 4


@pytest.mark.parametrize("where", ["decode", "generate"])
def test_ctrl_c_stops_within_a_moment(demo: Model, where: str) -> None:
    with demo.new_context(SMALL.with_n_ctx(2048).with_n_batch(2048)) as context:
        pressed: list[float] = []

        def press() -> None:
            pressed.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(0.3, press)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            if where == "decode":
                context.decode(Batch.get_one(long_prompt(demo)))
            else:
                list(context.generate(long_prompt(demo)))
        # A tenth of what is promised on a quiet machine would do; others may be using this one.
        assert time.monotonic() - pressed[0] < 3
        timer.join()
        context.kv_cache_clear()
        assert "".join(piece.text for piece in context.generate("The capital of France is", max_tokens=1)) == " Paris"


def test_ctrl_c_during_a_load(demo_path: Path) -> None:
    def progress(fraction: float) -> bool:
        if not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.002)
        return True

    pressed: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        Model.load_from_file(demo_path, CPU.with_use_mmap(False).with_progress_callback(progress))
    Model.load_from_file(demo_path, CPU).close()


def test_closing_waits_for_a_running_call(demo: Model) -> None:
    context = demo.new_context(SMALL.with_n_ctx(512).with_n_batch(512))
    errors: list[BaseException] = []
    started = threading.Event()

    def work() -> None:
        try:
            started.set()
            context.decode(Batch.get_one(long_prompt(demo)[:200]))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    time.sleep(0.05)
    context.close()
    thread.join()
    assert context.closed
    assert not errors or "closed" in str(errors[0])


@pytest.mark.parametrize("unified", [False, True])
def test_keeping_one_sequence_forgets_the_others(moe: Model, unified: bool) -> None:
    with moe.new_context(SMALL.with_n_seq_max(3).with_kv_unified(unified)) as context:
        batch = Batch(16)
        for sequence in range(3):
            batch.add_sequence([1, 5, 6 + sequence], sequence)
        context.decode(batch)
        context.kv_cache_seq_keep(1)
        assert [context.kv_cache_seq_pos_max(sequence) for sequence in range(3)] == [-1, 2, -1]


@pytest.mark.parametrize("prompt", [None, 5, 0.5, b"text", {"role": "user"}])
def test_prompts_that_are_none(context: Context, prompt: Any) -> None:
    with pytest.raises(TypeError, match="takes text, token ids, or a list of chat messages"):
        context.generate(prompt)
