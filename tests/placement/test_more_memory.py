"""More memory never gives a worse fit: a token never reads more from host memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import moebind
from moebind import ContextParams, Fit, FitError, ModelParams

MakeShape = Callable[..., Path]
MIB = 2**20
GIB = 2**30
CONTEXT = ContextParams(n_ctx=4096)
#: Less tall than the real ones; each layer is true.
HEIGHTS = {
    "phi-3.5-moe-q4_k_m": 8,
    "mixtral-8x7b-q4_k_m": 6,
    "qwen3-30b-a3b-q4_k_m": 9,
    "gpt-oss-120b-mxfp4": 5,
    "deepseek-v3-q4_k_m": 6,
}
NAMES = st.sampled_from(list(HEIGHTS))
#: A budget, as a share of what the whole model takes: often a small one.
SHARES = st.one_of(st.floats(0.001, 0.2), st.floats(0.1, 1.1))


def fitted(path: Path, sizes: Sequence[int], params: ModelParams | None = None) -> Fit | None:
    memory = {f"GPU{at}": size for at, size in enumerate(sizes)}
    devices: list[str | int] = ["1TiB"] * len(sizes)
    try:
        return moebind.fit(path, memory=memory, model_params=params, context_params=CONTEXT, devices=devices)
    except FitError:
        return None


def reads(fit: Fit | None) -> float:
    """Bytes that a token reads from host memory."""
    return math.inf if fit is None else fit.plan.bytes_per_token["Host"]


def budgets(path: Path, shares: Sequence[float]) -> list[int]:
    most = moebind.plan(path, ModelParams(), CONTEXT, devices=["1TiB"]).device_bytes
    return [int(most * share) for share in shares]


def check_left_out(path: Path, shares: list[float]) -> None:
    sizes = budgets(path, shares)
    found = reads(fitted(path, sizes))
    for at in range(len(sizes)):
        fewer = [*sizes[:at], *sizes[at + 1 :]]
        if fewer:
            assert found <= reads(fitted(path, fewer))
        else:
            alone = moebind.plan(path, ModelParams(devices=()), CONTEXT)
            assert found <= alone.bytes_per_token["Host"]


def check_larger(path: Path, shares: list[float], factors: list[float]) -> None:
    sizes = budgets(path, shares)
    larger = [int(size * factor) for size, factor in zip(sizes, factors, strict=False)]
    assert reads(fitted(path, larger)) <= reads(fitted(path, sizes))


def check_pinned(path: Path, shares: list[float], fields: frozenset[str]) -> None:
    sizes = budgets(path, shares)
    found = fitted(path, sizes)
    assert found is not None
    pinned = ModelParams(**{name: getattr(found.model_params, name) for name in fields})
    assume(pinned != ModelParams())
    again = fitted(path, sizes, pinned)
    assert again is not None
    assert reads(again) <= reads(found)
    assert all(
        getattr(again.model_params, name) == getattr(found.model_params, name) for name in fields - {"tensor_overrides"}
    )
    rules = again.model_params.tensor_overrides
    assert rules[: len(pinned.tensor_overrides)] == pinned.tensor_overrides


ONE_TO_THREE = st.lists(SHARES, min_size=1, max_size=3)
FACTORS = st.lists(st.one_of(st.just(1.0), st.floats(1.0, 1.1), st.floats(1.0, 2.0)), min_size=3, max_size=3)
FIELDS = st.frozensets(st.sampled_from(["n_gpu_layers", "tensor_split", "tensor_overrides", "devices"]), min_size=1)


@given(NAMES, st.lists(SHARES, min_size=1, max_size=2))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_another_device_never_loses(shape_path: MakeShape, name: str, shares: list[float]) -> None:
    check_left_out(shape_path(name, HEIGHTS[name]), shares)


@given(NAMES, st.lists(SHARES, min_size=1, max_size=2), FACTORS)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_a_larger_budget_never_loses(
    shape_path: MakeShape, name: str, shares: list[float], factors: list[float]
) -> None:
    check_larger(shape_path(name, HEIGHTS[name]), shares, factors)


@given(NAMES, st.lists(SHARES, min_size=1, max_size=2), FIELDS)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_what_was_chosen_can_be_pinned(
    shape_path: MakeShape, name: str, shares: list[float], fields: frozenset[str]
) -> None:
    check_pinned(shape_path(name, HEIGHTS[name]), shares, fields)


@pytest.mark.thorough
@pytest.mark.timeout(900)
@given(NAMES, ONE_TO_THREE, FACTORS, FIELDS)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_all_of_it_at_random(
    shape_path: MakeShape, name: str, shares: list[float], factors: list[float], fields: frozenset[str]
) -> None:
    path = shape_path(name, HEIGHTS[name])
    check_left_out(path, shares)
    check_larger(path, shares, factors)
    check_pinned(path, shares, fields)


# --- known cases ---


@pytest.mark.parametrize("second", [100 * MIB, GIB, 2 * GIB])
@pytest.mark.parametrize("first_is_small", [False, True])
def test_a_small_card_beside_a_large_one(shape_path: MakeShape, second: int, first_is_small: bool) -> None:
    path = shape_path("gpt-oss-120b-mxfp4")
    sizes = [second, 23 * GIB] if first_is_small else [23 * GIB, second]
    alone, both = fitted(path, [23 * GIB]), fitted(path, sizes)
    assert alone is not None
    assert alone.plan.expert_bytes > 19 * GIB
    assert reads(both) <= reads(alone)


def test_a_card_that_has_no_room_for_copies_of_experts(shape_path: MakeShape) -> None:
    path = shape_path("deepseek-v3-q4_k_m")
    sizes = [int(2.63 * GIB), int(5.27 * GIB)]
    alone, both = fitted(path, sizes[1:]), fitted(path, sizes)
    assert alone is not None
    assert both is not None
    assert reads(both) <= reads(alone)
    assert both.model_params.devices is not None
    assert [device.name for device in both.model_params.devices] == ["GPU1"]
    assert "Without GPU0 a token reads less from host memory" in both.explanation
    again = moebind.plan(path, both.model_params, both.context_params, devices=["1TiB", "1TiB"])
    assert again == both.plan


@pytest.mark.parametrize("sizes", [[MIB, 8 * GIB], [MIB, MIB]])
def test_a_fit_without_some_devices_is_kept(shape_path: MakeShape, tmp_path: Path, sizes: list[int]) -> None:
    path = shape_path("deepseek-v3-q4_k_m", 6)
    devices: list[str | int] = list(sizes)
    fit = moebind.fit(path, margin=0, context_params=CONTEXT, devices=devices, host="1TiB")
    assert fit.model_params.devices is not None
    fit.save(tmp_path / "fit.json")
    again = Fit.load(tmp_path / "fit.json")
    assert again.plan == fit.plan
    assert again.model_params == fit.model_params


def test_no_card_is_large_enough(shape_path: MakeShape) -> None:
    path = shape_path("deepseek-v3-q4_k_m", 6)
    fit = fitted(path, [MIB, MIB])
    assert fit is not None
    assert fit.model_params == ModelParams(devices=())
    assert [device.name for device in fit.plan.devices] == ["Host"]
    assert fit.explanation.startswith(
        "Nothing fits on the devices: GPU0 may take 1.0 MiB and GPU1 may take 1.0 MiB, too little for any layer. "
        "The model runs on the processor, and everything is in host memory.\n"
    )
    assert fitted(path, [MIB, MIB], ModelParams(n_gpu_layers=3)) is None


@pytest.mark.parametrize(("name", "size", "layers"), [("qwen3-30b-a3b-q4_k_m", 2, 28), ("deepseek-v3-q4_k_m", 12, 16)])
def test_layers_without_their_experts_come_first(shape_path: MakeShape, name: str, size: int, layers: int) -> None:
    # So many layers has llama.cpp's own fit, which takes more experts.
    path, context = shape_path(name), ContextParams(n_ctx=16384 if size == 2 else 4096)
    fit = moebind.fit(path, margin=0, context_params=context, devices=[size * GIB])
    assert fit.model_params.n_gpu_layers > layers
    bare = ModelParams(n_gpu_layers=fit.model_params.n_gpu_layers + 1).with_cpu_moe_all()
    assert moebind.plan(path, bare, context, devices=[size * GIB]).devices[0].total > size * GIB


def test_a_device_that_is_there_is_left_out(tiny_path: Callable[..., Path]) -> None:
    path = tiny_path(n_expert=8, n_layer=4)
    whole = moebind.plan(path, ModelParams(), CONTEXT, devices=["1GiB"]).devices[0].total
    with moebind.loopback_device(memory=2**16) as small, moebind.loopback_device(memory=2 * whole) as large:
        fit = moebind.fit(path, margin=0, context_params=CONTEXT, devices=[small, large])
        assert fit.model_params.devices == (large,)
        assert fit.plan.bytes_per_token["Host"] < MIB
        chosen = moebind.fit(path, margin=0, context_params=CONTEXT, model_params=ModelParams(devices=(small, large)))
        assert chosen.model_params == fit.model_params
        with moebind.Model.load_from_file(path, fit.model_params) as model:
            assert [device.name for device in model.devices] == [large.name]


def test_overrides_and_shares_keep_their_devices(tiny_path: Callable[..., Path]) -> None:
    path = tiny_path(n_expert=8, n_layer=4)
    for pinned in (ModelParams().with_tensor_override("ffn_up_exps", "GPU0"), ModelParams(tensor_split=(1, 1))):
        with pytest.raises(FitError, match="GPU0 may take"):
            moebind.fit(path, memory={"GPU0": 2**16}, model_params=pinned, devices=["1GiB", "1GiB"])


def test_devices_in_both_places(tiny_path: Callable[..., Path]) -> None:
    path = tiny_path(n_expert=4)
    plan = moebind.plan(path, None, CONTEXT, devices=["1GiB", "2GiB"])
    assert [device.name for device in plan.devices] == ["GPU0", "GPU1", "Host"]
    none = moebind.plan(path, ModelParams(devices=()), CONTEXT, devices=["1GiB", "2GiB"])
    assert [device.name for device in none.devices] == ["Host"]
    with moebind.loopback_device() as other:
        with pytest.raises(ValueError, match=r"which is not among those that are planned for: GPU0"):
            moebind.plan(path, ModelParams(devices=(other,)), CONTEXT, devices=["1GiB"])
        mixed = moebind.plan(path, ModelParams(devices=(other,)), CONTEXT, devices=["1GiB", other])
        assert [device.name for device in mixed.devices] == [other.name, "Host"]
