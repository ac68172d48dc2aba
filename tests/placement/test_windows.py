"""Layers with sliding windows: when a fit gives them a cache of their windows alone, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from moebind import ContextParams, FitError, ModelParams
from moebind.placement.windows import COST_MAX, cost

MakeShape = Callable[..., Path]
#: Less tall than the real one; every other layer has a window of 128 tokens.
SHAPE, LAYERS = "gpt-oss-120b-mxfp4", 6
LONG = 131072


@pytest.fixture(scope="module")
def path(shape_path: MakeShape) -> Path:
    return shape_path(SHAPE, LAYERS)


@pytest.fixture(scope="module")
def sizes(path: Path) -> dict[bool, int]:
    """What everything takes on the device, with a full-size cache and without."""
    found = {}
    for full in (True, False):
        context = ContextParams(n_ctx=LONG, swa_full=full)
        found[full] = moebind.plan(path, None, context, devices=["1TiB"]).device_bytes
    return found


def test_the_cache_is_about_half(path: Path) -> None:
    full, narrow = (
        moebind.plan(path, None, ContextParams(n_ctx=LONG, swa_full=full), devices=["1TiB"]).devices[0].context
        for full in (True, False)
    )
    # Three layers of 131072 tokens, with 8 heads of 64 numbers in F16, twice.
    assert full - narrow == pytest.approx(3 * LONG * 8 * 64 * 2 * 2, rel=0.05)


def test_where_everything_fits_the_cache_is_full(path: Path, sizes: dict[bool, int]) -> None:
    fit = moebind.fit(path, memory=sizes[True], n_ctx=LONG, devices=["1TiB"])
    assert fit.context_params.swa_full
    assert fit.model_params == ModelParams()
    assert "swa_full" not in fit.explanation


def test_a_full_cache_that_costs_much_is_left(path: Path, sizes: dict[bool, int]) -> None:
    for budget in (sizes[False], sizes[False] // 2):
        free = moebind.fit(path, memory=budget, n_ctx=LONG, devices=["1TiB"])
        full = moebind.fit(path, memory=budget, n_ctx=LONG, devices=["1TiB"], swa_full=True)
        windows = moebind.fit(path, memory=budget, n_ctx=LONG, devices=["1TiB"], swa_full=False)
        assert not free.context_params.swa_full
        assert full.context_params.swa_full
        assert free.plan == windows.plan
        assert cost(full.plan) > COST_MAX * cost(free.plan)
        assert "swa_full is False: beside a full-size cache, a token would read" in free.explanation
        assert "128 tokens back" in free.explanation
        # Who asked for either is told nothing about it.
        assert "swa_full" not in full.explanation + windows.explanation


def test_a_full_cache_that_costs_little_stays(path: Path) -> None:
    # At 1024 tokens, the cache of three layers is a few MiB.
    fit = moebind.fit(path, memory="4GiB", n_ctx=1024, devices=["1TiB"])
    assert fit.context_params.swa_full
    without = moebind.fit(path, memory="4GiB", n_ctx=1024, devices=["1TiB"], swa_full=False)
    assert cost(fit.plan) <= COST_MAX * cost(without.plan)


def test_a_full_cache_that_does_not_fit(path: Path) -> None:
    pinned = ModelParams(n_gpu_layers=LAYERS + 1).with_cpu_moe_all()
    need = {
        full: moebind.plan(path, pinned, ContextParams(n_ctx=LONG, swa_full=full), devices=["1TiB"]).devices[0].total
        for full in (True, False)
    }
    budget = sum(need.values()) // 2
    fit = moebind.fit(path, memory=budget, n_ctx=LONG, devices=["1TiB"], model_params=pinned)
    assert not fit.context_params.swa_full
    assert "swa_full is False: a full-size cache would not fit." in fit.explanation
    with pytest.raises(FitError):
        moebind.fit(path, memory=budget, n_ctx=LONG, devices=["1TiB"], model_params=pinned, swa_full=True)


def test_what_was_set_stays(path: Path, sizes: dict[bool, int]) -> None:
    context = ContextParams(n_ctx=LONG, swa_full=False)
    fit = moebind.fit(path, memory=sizes[False], context_params=context, devices=["1TiB"])
    assert not fit.context_params.swa_full
    assert "swa_full" not in fit.explanation
    both = moebind.fit(path, memory=sizes[False], context_params=context, devices=["1TiB"], swa_full=True)
    assert both.context_params.swa_full  # the argument wins, as that of n_ctx does


def test_a_context_that_could_be_longer_says_so(path: Path, sizes: dict[bool, int]) -> None:
    half = moebind.plan(path, None, ContextParams(n_ctx=LONG // 2), devices=["1TiB"]).device_bytes
    fit = moebind.fit(path, memory=half, devices=["1TiB"])
    assert fit.model_params == ModelParams()
    assert 4096 < fit.plan.n_ctx < LONG
    assert "with swa_full=False, a longer context may fit" in fit.explanation
    windows = moebind.fit(path, memory=half, devices=["1TiB"], swa_full=False)
    assert windows.plan.n_ctx > fit.plan.n_ctx  # it is true
    for said in (windows, moebind.fit(path, memory=sizes[True], devices=["1TiB"])):
        assert "swa_full" not in said.explanation


def test_a_model_without_windows(shape_path: MakeShape) -> None:
    fit = moebind.fit(shape_path("mixtral-8x7b-q4_k_m", 6), memory="3GiB", n_ctx=32768, devices=["24GiB"])
    assert fit.context_params.swa_full
    assert "swa_full" not in fit.explanation


@pytest.mark.parametrize("value", [1, "yes", 0])
def test_what_is_no_choice(path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="swa_full"):
        moebind.fit(path, devices=["1TiB"], swa_full=value)  # type: ignore[arg-type]
