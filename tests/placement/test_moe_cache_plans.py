"""The cache of experts in plans: as large as a load makes it, and refused where a load refuses it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from conftest import SMALL
from moebind import ContextCreationError, Device, Model, ModelParams
from moebind._core.sizes import parse_size

MakeTiny = Callable[..., Path]
MODELS: dict[str, dict[str, object]] = {
    "experts": {"n_expert": 8, "n_layer": 3},
    "dense first": {"arch": "deepseek", "n_expert": 8, "n_dense_layers": 1, "n_layer": 3},
    "fused": {"arch": "granite_swa", "n_expert": 4},
}


def placed(device: Device | None = None) -> ModelParams:
    params = ModelParams(n_gpu_layers=-1, use_extra_bufts=False).with_cpu_moe_all()
    return params if device is None else params.with_devices((device,))


@pytest.mark.parametrize("size", ["600KB", "1MB", "1.5MB", "1GiB"])
@pytest.mark.parametrize("model", MODELS)
def test_a_plan_counts_what_a_load_holds(tiny_path: MakeTiny, device: Device, model: str, size: str) -> None:
    path, params = tiny_path(**MODELS[model]), placed(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are small
        context_params = SMALL.with_moe_cache_size(size)
        plan = moebind.plan(path, params, context_params)
        with Model.load_from_file(path, params) as loaded, loaded.new_context(context_params) as live:
            actual = live.memory_breakdown()
    for ours, theirs in zip(plan.devices, actual.devices, strict=True):
        assert (ours.name, ours.moe_cache, ours.context) == (theirs.name, theirs.moe_cache, theirs.context)
    held = plan.devices[0].moe_cache
    assert 0 < held <= moebind.ContextParams(moe_cache_size=size).moe_cache_size  # type: ignore[arg-type]
    without = moebind.plan(path, params, SMALL)
    assert plan.device_bytes - without.device_bytes == held + plan.devices[0].compute - without.devices[0].compute


def test_a_plan_tells_of_it(tiny_path: MakeTiny) -> None:
    path = tiny_path(**MODELS["experts"])
    plan = moebind.plan(path, placed(), SMALL.with_moe_cache_size("1MB"), devices=["1GiB"])
    assert "moe cache" in str(plan)
    assert str(plan).splitlines()[1].split()[2:6] == ["model", "context", "moe", "cache"]
    described = plan.to_dict()["devices"]
    assert isinstance(described, list)
    assert [device["moe_cache"] > 0 for device in described] == [True, True]  # the host has maps of it
    without = moebind.plan(path, placed(), SMALL, devices=["1GiB"])
    assert "moe cache" not in str(without)
    assert without.devices[0].context == plan.devices[0].context


def test_a_token_reads_experts_where_they_come_from(demo_path: Path) -> None:
    plain = moebind.plan(demo_path, placed(), SMALL, devices=["1GiB"])
    cached = moebind.plan(demo_path, placed(), SMALL.with_moe_cache_size("200MiB"), devices=["1GiB"])
    assert cached.weights_per_token == plain.weights_per_token
    assert cached.bytes_per_token == plain.bytes_per_token


def test_a_cache_beyond_the_device_does_not_fit(demo_path: Path) -> None:
    plan = moebind.plan(demo_path, placed(), SMALL.with_moe_cache_size("300MiB"), devices=["300MiB"])
    assert not plan.fits
    assert "GPU0" in plan.missing


@pytest.mark.parametrize(
    ("params", "size", "message"),
    [
        (placed(), 1000, "one token in one layer: it takes at least"),
        (ModelParams(n_gpu_layers=-1), "1GiB", "keep some in host memory"),
        (placed().with_n_gpu_layers(0), "1GiB", "no layer with experts is computed by a GPU"),
    ],
)
def test_what_a_load_refuses(tiny_path: MakeTiny, params: ModelParams, size: int | str, message: str) -> None:
    path = tiny_path(**MODELS["experts"])
    with pytest.raises(ContextCreationError, match=message):
        moebind.plan(path, params, SMALL.with_moe_cache_size(size), devices=["1GiB"])


def test_a_small_one_is_told(tiny_path: MakeTiny) -> None:
    path = tiny_path(**MODELS["experts"])
    with pytest.warns(UserWarning, match="it will hardly hit"):
        moebind.plan(path, placed(), SMALL.with_moe_cache_size("300KB"), devices=["1GiB"])


@pytest.mark.parametrize("budget", ["300MiB", "350MiB", "400MiB"])
def test_a_fit_takes_the_cache_from_the_budget(demo_path: Path, budget: str) -> None:
    base = ModelParams(use_extra_bufts=False)
    fits = [
        moebind.fit(demo_path, memory=budget, n_ctx=512, devices=["1GiB"], model_params=base, moe_cache=size)
        for size in (0, "100MiB")
    ]
    assert [fit.plan.devices[0].total <= parse_size("budget", budget) for fit in fits] == [True, True]
    plain, cached = fits
    assert plain.context_params.moe_cache_size == plain.plan.devices[0].moe_cache == 0
    assert 90 * 2**20 < cached.plan.devices[0].moe_cache <= 100 * 2**20
    assert cached.plan.expert_bytes < plain.plan.expert_bytes
    assert "are a cache for experts that are in host memory" in cached.explanation
    again = moebind.plan(demo_path, cached.model_params, cached.context_params, devices=["1GiB"])
    assert again.devices == cached.plan.devices


def test_where_everything_fits_there_is_no_cache(demo_path: Path) -> None:
    context = SMALL.with_moe_cache_size("90MiB")
    fit = moebind.fit(demo_path, devices=["1GiB"], context_params=context)
    assert fit.context_params.moe_cache_size == 0
    assert "No cache of experts is needed." in fit.explanation
    assert fit.plan.expert_bytes == moebind.experts(demo_path).nbytes


def test_a_cache_that_leaves_no_room(demo_path: Path) -> None:
    with pytest.raises(moebind.FitError, match="GPU0 may take"):
        moebind.fit(
            demo_path,
            memory="200MiB",
            n_ctx=512,
            devices=["1GiB"],
            model_params=ModelParams(n_gpu_layers=-1, use_extra_bufts=False).with_cpu_moe_all().with_n_gpu_layers(31),
            moe_cache="190MiB",
        )
    with pytest.raises(ContextCreationError, match="one token in one layer"):
        moebind.fit(demo_path, memory="300MiB", n_ctx=512, devices=["1GiB"], moe_cache=1000)
