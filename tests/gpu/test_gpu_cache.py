"""The cache of experts on a GPU: the same text, what was planned, and what was forecast."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from on_gpu import all_logits, prompt

import moebind
from conftest import SMALL
from moebind import Context, Device, Model, ModelParams, RoutingRecorder
from moebind.backend.breakdown import PARTS

MIB = 2**20
#: Shares of all experts: one with room for less than a token's, which never hits; one for those of two tokens; one for
#: nearly all.
SHARES = [0.11, 0.42, 0.97]


@pytest.fixture(params=SHARES)
def size(request: pytest.FixtureRequest, demo_path: Path) -> int:
    return int(request.param * moebind.experts(demo_path).nbytes)


@pytest.fixture(scope="module")
def params(gpu: Device) -> ModelParams:
    return ModelParams(devices=(gpu,), use_extra_bufts=False).with_cpu_moe_all()


@pytest.fixture(scope="module")
def model(params: ModelParams, demo_path: Path) -> Iterator[Model]:
    with Model.load_from_file(demo_path, params) as model:
        yield model


def with_cache(model: Model, size: int) -> Context:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the smallest is told of
        return model.new_context(SMALL.with_moe_cache_size(size))


def written(context: Context) -> list[int]:
    return [piece.token for piece in context.generate("Once upon a time", max_tokens=24)]


@pytest.fixture(scope="module")
def expected(model: Model) -> tuple[list[int], RoutingRecorder]:
    """What is written without a cache, and what the routers chose."""
    recorder = RoutingRecorder(order=True)
    with model.new_context(SMALL.with_eval_callback(recorder)) as context:
        tokens = written(context)
    return tokens, recorder


def test_the_text_is_the_same_and_the_counters_are_the_forecasts(
    model: Model, expected: tuple[list[int], RoutingRecorder], size: int
) -> None:
    tokens, recorder = expected
    with with_cache(model, size) as context:
        assert written(context) == tokens
        counted = context.moe_cache_stats()
    assert counted is not None
    point = recorder.cache_curve().at(size)
    assert (counted.n_slots, counted.hits, counted.misses, counted.bytes_uploaded) == (
        point.n_slots,
        point.hits,
        point.misses,
        point.bytes_uploaded,
    )


def test_a_long_prompt_computes_the_same(model: Model, size: int) -> None:
    """More than 32 tokens pass the cache by, and take from it what is there."""
    tokens = prompt(model)
    with model.new_context(SMALL) as plain, with_cache(model, size) as cached:
        written(cached)
        cached.kv_cache_clear()
        np.testing.assert_array_equal(
            all_logits(plain, tokens).argmax(axis=1), all_logits(cached, tokens).argmax(axis=1)
        )
        np.testing.assert_array_equal(
            all_logits(plain, tokens[:5], len(tokens)).argmax(axis=1),
            all_logits(cached, tokens[:5], len(tokens)).argmax(axis=1),
        )


def test_a_plan_counts_it(demo_path: Path, params: ModelParams, model: Model, size: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = moebind.plan(demo_path, params, SMALL.with_moe_cache_size(size))
    with with_cache(model, size) as context:
        held = context.memory_breakdown()
    for ours, theirs in zip(plan.devices, held.devices, strict=True):
        for part in PARTS:
            planned, actual = getattr(ours, part), getattr(theirs, part)
            assert abs(planned - actual) <= max(0.01 * actual, 4 * MIB), (part, ours, theirs)
    assert held.devices[0].moe_cache > 0


def test_a_fit_with_a_cache_is_loaded(
    demo_path: Path, gpu: Device, expected: tuple[list[int], RoutingRecorder]
) -> None:
    room = moebind.plan(demo_path, ModelParams(devices=(gpu,)).with_cpu_moe_all(), SMALL).device_bytes
    budget = room + moebind.experts(demo_path).nbytes // 2
    fit = moebind.fit(
        demo_path, memory=budget, n_ctx=512, devices=[gpu], context_params=SMALL, moe_cache="auto",
        routing=expected[1], bus=2.0,
    )  # fmt: skip
    assert fit.plan.devices[0].moe_cache > 0
    with Model.load_from_file(demo_path, fit.model_params) as model:
        with model.new_context(fit.context_params) as context:
            assert context.memory_breakdown().devices[0].total <= budget
            written(context)
            stats = context.moe_cache_stats()
    assert stats is not None
    assert stats.hits > 0
