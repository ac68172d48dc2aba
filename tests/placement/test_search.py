"""The search: what it tries when a model does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from conftest import CPU, SMALL
from moebind import ContextParams, ModelParams
from moebind._core.sizes import show_size
from moebind.placement.header import read_header
from moebind.placement.search import Search

MakeTiny = Callable[..., Path]
MakeShape = Callable[..., Path]
MIB = 2**20
CONTEXT = ContextParams(n_ctx=4096)


def test_fewer_layers_when_not_even_the_rest_fits(shape_path: MakeShape) -> None:
    path = shape_path("qwen3-30b-a3b-q4_k_m", 9)
    least = moebind.plan(path, ModelParams().with_cpu_moe_all(), CONTEXT, devices=["1TiB"]).device_bytes
    fit = moebind.fit(path, memory=least - 30 * MIB, context_params=CONTEXT, devices=["24GiB"])
    assert 0 < fit.model_params.n_gpu_layers < 10
    layers = f"they take the last {fit.model_params.n_gpu_layers} of its 10 layers"
    assert f"for the devices, even with all experts in host memory: {layers}" in fit.explanation
    assert fit.plan.expert_bytes == 0
    weight = show_size(moebind.experts(path).nbytes)
    assert f"All experts, {weight}, are in host memory." in fit.explanation.splitlines()


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


@pytest.fixture
def search(tiny_path: MakeTiny) -> Search:
    return Search(read_header(str(tiny_path(n_expert=4, n_layer=3))), None, {"Host": 2**40})


def test_plans_are_made_once(search: Search) -> None:
    first = search.plan(CPU, SMALL)
    assert search.plan(CPU, SMALL) is first
    assert search.n_plans == 1
    assert search.plan(CPU, SMALL.with_n_ctx(512)) is not first
    assert search.n_plans == 2


def test_the_plan_that_came_closest_is_kept(search: Search) -> None:
    short, long = search.plan(CPU, SMALL), search.plan(CPU, SMALL.with_n_ctx(4096))
    assert search.fits(short)
    assert search.closest is None
    held = short.host.total - short.gaps
    assert search.excess(short) == {"Host": held - 2**40}
    search.budgets = {"Host": held - 1, "GPU7": 0}  # a device that is not there may take anything
    assert search.excess(short) == {"Host": 1}
    assert not search.fits(long)
    assert search.closest is long
    assert not search.fits(short)
    assert search.closest is short
    assert not search.fits(long)
    assert search.closest is short


def test_without_a_device_there_is_nothing_to_choose(search: Search) -> None:
    assert search.place(CPU, SMALL) is search.plan(CPU, SMALL)
    search.budgets = {"Host": 0}
    assert search.place(CPU, SMALL) is None


def test_a_context_is_made_as_long_as_there_is_room(search: Search) -> None:
    short = search.plan(CPU, SMALL)
    assert search.widen(short, 256, 4096, 256).context_params.n_ctx == 4096
    limit = search.plan(CPU, SMALL.with_n_ctx(1024))
    search.budgets = {"Host": limit.host.total - limit.gaps}
    assert search.widen(short, 256, 4096, 256).context_params.n_ctx == 1024
    search.budgets = {"Host": 0}
    assert search.widen(short, 256, 4096, 256) is short
