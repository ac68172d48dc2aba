"""Contexts: settings, threads, stopping."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from conftest import SMALL
from moebind import AbortedError, Batch, ContextParams, Model, PoolingType


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


# --- threads, and stopping ---


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
        prompt = long_prompt(demo)
        timer = threading.Timer(0.2, context.abort)
        timer.start()
        with pytest.raises(AbortedError) as caught:
            context.decode(Batch.get_one(prompt))
        assert caught.value.code == 2
        timer.join()
        assert context.kv_cache_seq_pos_max(0) < len(prompt) - 1, "it was computed to its end"
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
        prompt = long_prompt(demo)
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            if where == "decode":
                context.decode(Batch.get_one(prompt))
            else:
                list(context.generate(prompt))
        timer.join()
        # Whatever else the machine does: what a clock says of that tells nothing.
        assert context.kv_cache_seq_pos_max(0) < len(prompt) - 1, "it was computed to its end"
        context.kv_cache_clear()
        assert "".join(piece.text for piece in context.generate("The capital of France is", max_tokens=1)) == " Paris"


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
