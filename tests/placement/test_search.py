"""The search: what it tries when a model does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import moebind
from conftest import SMALL
from moebind import ContextParams, ModelParams

MakeTiny = Callable[..., Path]
MakeShape = Callable[..., Path]
MIB = 2**20
CONTEXT = ContextParams(n_ctx=4096)


def test_fewer_layers_when_not_even_the_rest_fits(shape_path: MakeShape) -> None:
    path = shape_path("qwen3-30b-a3b-q4_k_m", 9)
    least = moebind.plan(path, ModelParams().with_cpu_moe_all(), CONTEXT, devices=["1TiB"]).device_bytes
    fit = moebind.fit(path, memory=least - 30 * MIB, context_params=CONTEXT, devices=["24GiB"])
    assert 0 < fit.model_params.n_gpu_layers < 10
    assert "Even without its experts" in fit.explanation


def test_a_dense_model_is_split_by_layers(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_layer=12)
    most = moebind.plan(path, ModelParams(), SMALL, devices=["1GiB"]).device_bytes
    fit = moebind.fit(path, memory=most * 3 // 4, context_params=SMALL, devices=["1GiB"])
    assert 0 < fit.model_params.n_gpu_layers < 13
    assert not fit.model_params.tensor_overrides


def test_the_context_grows_into_what_is_left(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4, n_ctx_train=32768)
    short = moebind.plan(path, ModelParams(), ContextParams(n_ctx=4096), devices=["1GiB"]).device_bytes
    fit = moebind.fit(path, memory=short + MIB, devices=["1GiB"])
    assert fit.model_params == ModelParams()
    assert 4096 < fit.context_params.n_ctx < 32768
    longer = fit.context_params.with_n_ctx(fit.context_params.n_ctx + 256)
    assert moebind.plan(path, ModelParams(), longer, devices=["1GiB"]).device_bytes > short + MIB
    assert moebind.fit(path, memory="1GiB", n_ctx_min=64, devices=["1GiB"]).context_params.n_ctx == 32768
    assert moebind.fit(path, memory=short - 2**17, n_ctx_min=256, devices=["1GiB"]).context_params.n_ctx < 4096
