"""Pools of threads that contexts compute with."""

from __future__ import annotations

import os

import bounds
import numpy as np
import pytest
from computed import TOKENS, logits_of

from conftest import EXACT
from moebind import Batch, ClosedError, Context, Model, SchedPriority, ThreadPool


def test_pools_compute(dense: Model) -> None:
    expected = logits_of(dense, TOKENS, EXACT)
    with ThreadPool(1) as pool, ThreadPool(2, priority=SchedPriority.NORMAL, poll=0) as other:
        assert pool.n_threads == 1
        with dense.new_context(EXACT) as context, dense.new_context(EXACT) as second:
            context.attach_threadpool(pool)
            second.attach_threadpool(pool, other)
            for each in (context, second):
                each.decode(Batch.get_one(TOKENS))
                np.testing.assert_allclose(each.get_logits_ith(-1), expected, atol=bounds.ORDER)
            pool.pause()
            pool.resume()
            context.detach_threadpool()
            second.attach_threadpool(other)
            pool.close()  # libllama pauses what it used last
            for each in (context, second):
                each.kv_cache_clear()
                each.decode(Batch.get_one(TOKENS))
                np.testing.assert_allclose(each.get_logits_ith(-1), expected, atol=bounds.ORDER)
        with pytest.raises(ClosedError):
            pool.pause()
        assert repr(pool) == "<ThreadPool, closed>"
        assert repr(other) == "<ThreadPool of 2 threads>"


@pytest.mark.parametrize(("n_threads", "n_threads_batch"), [(2, 1), (1, 2), (2, 2)])
def test_a_pool_has_as_many_threads_as_compute(dense: Model, n_threads: int, n_threads_batch: int) -> None:
    expected = logits_of(dense, TOKENS, EXACT)
    params = EXACT.with_n_threads(n_threads).with_n_threads_batch(n_threads_batch)
    with ThreadPool(1) as one, ThreadPool(2) as two, dense.new_context(params) as context:
        with pytest.raises(ValueError, match=r"of the pool is 1, but the context's n_threads(_batch)? is 2"):
            context.attach_threadpool(one)
        context.attach_threadpool(two if n_threads == 2 else one, two if n_threads_batch == 2 else one)
        context.decode(Batch.get_one(TOKENS))
        np.testing.assert_allclose(context.get_logits_ith(-1), expected, atol=bounds.ORDER)
        context.set_n_threads(1, 1)
        context.attach_threadpool(one)
        with pytest.raises(ValueError, match=r"n_threads(_batch)? is 2, but .* of the attached pool is 1"):
            context.set_n_threads(n_threads, 1 if n_threads == 2 else 2)
        assert (context.n_threads, context.n_threads_batch) == (1, 1)
        context.kv_cache_clear()
        context.decode(Batch.get_one(TOKENS))
        np.testing.assert_allclose(context.get_logits_ith(-1), expected, atol=bounds.ORDER)
        context.detach_threadpool()
        context.set_n_threads(n_threads, n_threads_batch)


def test_a_closed_pool_is_not_attached(context: Context) -> None:
    pool = ThreadPool(1)
    pool.close()
    with pytest.raises(ClosedError):
        context.attach_threadpool(pool)
    for wrong in (None, 3, context):
        with pytest.raises(TypeError, match="ThreadPool"):
            context.attach_threadpool(wrong)  # type: ignore[arg-type]
    context.detach_threadpool()
    context.close()
    with pytest.raises(ClosedError):
        context.detach_threadpool()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"n_threads": 0}, ValueError),
        ({"n_threads": -1}, ValueError),
        ({"n_threads": 513}, ValueError),
        ({"n_threads": 2**31}, ValueError),
        ({"n_threads": 1.5}, TypeError),
        ({"n_threads": None}, TypeError),
        ({"priority": 99}, ValueError),
        ({"priority": "high"}, TypeError),
        ({"poll": -1}, ValueError),
        ({"poll": 101}, ValueError),
        ({"strict": 1}, TypeError),
        ({"cpus": [-1]}, ValueError),
        ({"cpus": [512]}, ValueError),
        ({"cpus": [511]}, ValueError),
        ({"cpus": 3}, TypeError),
        ({"cpus": ["a"]}, TypeError),
    ],
)
def test_bad_pools(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        ThreadPool(**{"n_threads": 1, **options})  # type: ignore[arg-type]


def test_pools_have_their_place() -> None:
    # Its threads, and no others: computing in this one would move it there for good.
    with ThreadPool(1, cpus=os.sched_getaffinity(0), strict=True) as pool:
        assert pool.n_threads == 1
