"""Fits: no budget is ever exceeded, budgets are used, what is pinned stays, and llama.cpp's fit is no better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fit as beside  # benchmarks/fit.py
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moebind
from conftest import SMALL
from moebind import ContextParams, Device, Fit, FitError, GgmlType, LoadMode, Model, ModelParams, Plan, SplitMode

MakeTiny = Callable[..., Path]
MakeShape = Callable[..., Path]
MIB = 2**20
GIB = 2**30
#: Less tall than the real ones, so that a plan takes a few milliseconds; each layer is true.
SHAPES = {
    "phi-3.5-moe-q4_k_m": 8,
    "mixtral-8x7b-q4_k_m": 6,
    "qwen3-30b-a3b-q4_k_m": 9,
    "gpt-oss-120b-mxfp4": 5,
    "deepseek-v3-q4_k_m": 6,
}
CONTEXT = ContextParams(n_ctx=4096)


def within(fit: Fit) -> bool:
    """Whether every budget holds, by a plan made anew."""
    plan = fit.plan
    held = {device.name: device.total for device in plan.devices[:-1]} | {"Host": plan.host.total - plan.gaps}
    return all(held.get(name, 0) <= budget for name, budget in fit.budgets.items())  # others are left out


def again(fit: Fit, devices: list[str | int]) -> Plan:
    return moebind.plan(fit.plan.path, fit.model_params, fit.context_params, devices=devices)


@given(
    name=st.sampled_from(list(SHAPES)),
    share=st.floats(0.0, 1.1),
    n_devices=st.integers(1, 3),
    pinned=st.booleans(),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_no_budget_is_exceeded(
    shape_path: MakeShape, name: str, share: float, n_devices: int, pinned: bool, data: st.DataObject
) -> None:
    path = shape_path(name, SHAPES[name])
    most = moebind.plan(path, ModelParams(), CONTEXT, devices=["1TiB"]).device_bytes
    sizes = [int(most * share * data.draw(st.floats(0.3, 1.0)) / n_devices) for _ in range(n_devices)]
    sizes = [max(size, 2**16) for size in sizes]  # fewer bytes are taken for a size without its unit
    memory = {f"GPU{at}": size for at, size in enumerate(sizes)}
    devices: list[str | int] = ["1TiB"] * n_devices
    fit = moebind.fit(path, memory=memory, devices=devices, n_ctx=2048 if pinned else None)
    assert fit.budgets == memory
    assert within(fit)
    remade = again(fit, devices)
    assert remade == fit.plan
    assert all(device.total <= memory[device.name] for device in remade.devices[:-1])
    assert fit.context_params.n_ctx == 2048 if pinned else fit.context_params.n_ctx >= 4096


@pytest.mark.parametrize("name", SHAPES)
def test_a_budget_is_used(shape_path: MakeShape, name: str) -> None:
    path = shape_path(name, SHAPES[name])
    summary = moebind.experts(path)
    smallest = min(layer.nbytes for layer in summary if layer.nbytes) / 2
    plan = moebind.plan(path, ModelParams(), CONTEXT, devices=["1TiB"])
    budget = plan.device_bytes - summary.nbytes // 2
    fit = moebind.fit(path, memory=budget, context_params=CONTEXT, devices=["1TiB"])
    # Another matrix would not fit: what is left is less than one of gate, up and down.
    assert budget - smallest < fit.plan.device_bytes <= budget
    longer = moebind.fit(path, memory=budget, devices=["1TiB"])
    assert longer.context_params.n_ctx >= 4096
    assert longer.plan.device_bytes <= budget


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["phi-3.5-moe-q4_k_m", "mixtral-8x7b-q4_k_m", "qwen3-30b-a3b-q4_k_m", "deepseek-v3-q4_k_m"]
)
@pytest.mark.parametrize("n_devices", [1, 2])
def test_no_more_is_read_from_the_host_than_with_llama_cpps_own_fit(
    shape_path: MakeShape, name: str, n_devices: int
) -> None:
    path = shape_path(name, SHAPES[name])
    compared = 0
    for sizes in beside.budgets(path, 6, n_devices):
        theirs, ours = beside.common_fit(path, sizes), beside.our_fit(path, sizes)
        if theirs is None or any(device.total > size for device, size in zip(theirs.devices, sizes, strict=False)):
            continue
        assert ours is not None
        assert ours.plan.bytes_per_token["Host"] <= theirs.bytes_per_token["Host"]
        compared += 1
    assert compared >= 3


# --- what is chosen ---


def test_everything_fits(shape_path: MakeShape) -> None:
    path = shape_path("phi-3.5-moe-q4_k_m", 8)
    fit = moebind.fit(path, devices=["80GiB"])
    assert fit.model_params == ModelParams()
    assert fit.context_params == ContextParams(n_ctx=131072)
    assert fit.budgets == {"GPU0": 79 * GIB}
    assert "Everything fits" in fit.explanation
    assert str(fit) == f"{fit.explanation}\n{fit.plan}"


def test_goals_trade_experts_for_prompts(shape_path: MakeShape) -> None:
    path = shape_path("qwen3-30b-a3b-q4_k_m", 24)
    fits = {
        goal: moebind.fit(path, memory="4GiB", context_params=CONTEXT, devices=["24GiB"], goal=goal)
        for goal in ("decode", "prompt", "balanced")
    }
    assert fits["decode"].context_params.n_ubatch == 512
    assert fits["prompt"].context_params.n_ubatch == 2048
    assert fits["prompt"].plan.expert_bytes < fits["balanced"].plan.expert_bytes <= fits["decode"].plan.expert_bytes
    reads = {goal: fit.plan.weights_per_token["Host"] for goal, fit in fits.items()}
    assert reads["decode"] <= reads["balanced"] <= 1.05 * reads["decode"]
    assert all(within(fit) for fit in fits.values())
    pinned = moebind.fit(
        path, memory="4GiB", context_params=CONTEXT.with_n_ubatch(256), devices=["24GiB"], goal="prompt"
    )
    assert pinned.context_params.n_ubatch == 256


# --- what is pinned stays ---


def test_pinned_values_stay(shape_path: MakeShape) -> None:
    path = shape_path("mixtral-8x7b-q4_k_m", 6)
    mine = r"blk\.5\.ffn_up_exps"
    model = ModelParams(n_gpu_layers=5).with_cpu_override(mine)
    context = ContextParams(n_ctx=1024, type_k=GgmlType.Q8_0, type_v=GgmlType.Q8_0, n_ubatch=128)
    fit = moebind.fit(path, memory="2GiB", model_params=model, context_params=context, devices=["24GiB"])
    assert fit.model_params.n_gpu_layers == 5
    assert fit.model_params.tensor_overrides[0] == model.tensor_overrides[0]
    assert len(fit.model_params.tensor_overrides) > 1
    assert fit.context_params == context
    assert fit.plan.places["blk.5.ffn_up_exps.weight"] is None
    assert within(fit)

    split = ModelParams(tensor_split=(3, 1))
    fit = moebind.fit(path, memory="2GiB", model_params=split, context_params=context, devices=["24GiB", "24GiB"])
    assert fit.model_params.tensor_split == (3, 1)
    assert within(fit)

    alone = ModelParams(split_mode=SplitMode.NONE, main_gpu=1)
    fit = moebind.fit(path, memory="2GiB", model_params=alone, context_params=context, devices=["24GiB", "24GiB"])
    assert [device.name for device in fit.plan.devices] == ["GPU1", "Host"]
    assert within(fit)


def test_an_override_to_the_device_stays(shape_path: MakeShape) -> None:
    path = shape_path("mixtral-8x7b-q4_k_m", 6)
    model = ModelParams().with_tensor_override(r"blk\.0\.ffn_.*_exps", "GPU0")
    fit = moebind.fit(path, memory="2200MiB", model_params=model, context_params=CONTEXT, devices=["24GiB"])
    assert fit.plan.places["blk.0.ffn_up_exps.weight"] == "GPU0"
    assert within(fit)
    with pytest.raises(FitError, match="leave n_gpu_layers and tensor_overrides to fit"):
        moebind.fit(
            path,
            memory="500MiB",
            n_ctx=512,
            model_params=ModelParams(n_gpu_layers=7).with_tensor_override(r"exps", "GPU0"),
            devices=["24GiB"],
        )


def test_what_is_missing_is_told(shape_path: MakeShape) -> None:
    path = shape_path("phi-3.5-moe-q4_k_m", 8)
    with pytest.raises(FitError, match=r"GPU0 may take 10\.0 MiB and lacks .* MiB at n_ctx 4096 .*leave n_gpu_layers"):
        moebind.fit(path, memory="10MiB", model_params=ModelParams(n_gpu_layers=5), devices=["24GiB"])
    with pytest.raises(FitError, match=r"Host may take 0\.0 MiB and lacks"):
        moebind.fit(path, memory={"Host": 0}, devices=["24GiB"])


# --- with a budget for the host, too ---


def on_host(fit: Fit) -> int:
    return fit.plan.host.total - fit.plan.gaps


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("n_devices", [1, 2])
@pytest.mark.parametrize("mapped", [True, False])
def test_the_host_takes_what_the_devices_leave(shape_path: MakeShape, name: str, n_devices: int, mapped: bool) -> None:
    path = shape_path(name, SHAPES[name])
    model = ModelParams(use_extra_bufts=False, load_mode=LoadMode.AUTO if mapped else LoadMode.NONE)
    devices: list[str | int] = ["1TiB"] * n_devices
    most = moebind.plan(path, model, CONTEXT, devices=devices).device_bytes
    memory = {f"GPU{at}": int(most * 0.6 / n_devices) for at in range(n_devices)}
    alone = moebind.fit(path, memory=memory, model_params=model, context_params=CONTEXT, devices=devices)
    # Each budget alone is too small for the experts.
    assert alone.plan.expert_bytes < moebind.experts(path).nbytes
    both = moebind.fit(
        path,
        memory={**memory, "Host": on_host(alone)},
        model_params=model,
        context_params=CONTEXT,
        devices=devices,
    )
    assert both.plan == alone.plan
    assert within(both)
    with pytest.raises(FitError, match=r"however it is spread over devices and host: .*Host may take"):
        moebind.fit(
            path,
            memory={**memory, "Host": on_host(alone) // 2},
            model_params=model,
            context_params=CONTEXT,
            devices=devices,
        )


def test_layers_that_no_device_has_room_for_go_to_a_host_that_is_limited(shape_path: MakeShape) -> None:
    path = shape_path("qwen3-30b-a3b-q4_k_m", 9)
    least = moebind.plan(path, ModelParams().with_cpu_moe_all(), CONTEXT, devices=["1TiB"]).device_bytes
    alone = moebind.fit(path, memory={"GPU0": least - 30 * MIB}, context_params=CONTEXT, devices=["24GiB"])
    assert alone.model_params.n_gpu_layers < 10
    memory = {**alone.budgets, "Host": on_host(alone)}
    both = moebind.fit(path, memory=memory, context_params=CONTEXT, devices=["24GiB"])
    assert both.plan == alone.plan


def test_a_context_grows_within_both_budgets(shape_path: MakeShape) -> None:
    path = shape_path("qwen3-30b-a3b-q4_k_m", 9)
    context = ContextParams(offload_kqv=False)  # it grows in host memory
    alone = moebind.fit(path, memory={"GPU0": "2GiB"}, context_params=context, devices=["24GiB"])
    assert alone.context_params.n_ctx > 8192
    shorter = moebind.plan(path, alone.model_params, context.with_n_ctx(8192), devices=["24GiB"])
    memory = {"GPU0": 2 * GIB, "Host": shorter.host.total - shorter.gaps}
    both = moebind.fit(path, memory=memory, context_params=context, devices=["24GiB"])
    assert both.context_params.n_ctx == 8192
    assert within(both)


# --- real devices ---


def test_a_fit_is_loaded(demo_path: Path) -> None:
    with moebind.loopback_device(memory=260 * MIB) as device:
        context = SMALL.with_n_ctx(1024)
        fit = moebind.fit(demo_path, margin=0, context_params=context, devices=[device])
        assert fit.model_params.devices == (device,)
        assert 0 < fit.plan.expert_bytes < moebind.experts(demo_path).nbytes
        with Model.load_from_file(demo_path, fit.model_params) as model, model.new_context(fit.context_params) as live:
            held = live.memory_breakdown().devices[0]
            assert held.name == device.name
            assert 200 * MIB < held.total <= 260 * MIB
            assert len(list(live.generate("Once", max_tokens=4))) == 4


def test_without_a_device(tiny_path: MakeTiny) -> None:
    fit = moebind.fit(tiny_path(n_expert=4), model_params=ModelParams(devices=(), n_gpu_layers=0))
    assert [device.name for device in fit.plan.devices] == ["Host"]
    assert fit.context_params.n_ctx == 512
    assert "no device besides the processor" in fit.explanation
    with pytest.raises(FitError, match="Host"):
        moebind.fit(tiny_path(n_expert=4), memory="1000B", model_params=ModelParams(devices=(), n_gpu_layers=0))


def test_the_margin_is_left(tiny_path: MakeTiny, device: Device) -> None:
    fit = moebind.fit(tiny_path(n_expert=4), margin="2GiB", devices=["3GiB"])
    assert fit.budgets == {"GPU0": GIB}
    fit = moebind.fit(tiny_path(n_expert=4), memory={"Host": "1GiB"}, devices=["30GiB"])
    assert fit.budgets == {"GPU0": 29 * GIB, "Host": GIB}
    fit = moebind.fit(tiny_path(n_expert=4), devices=[10 * MIB])
    assert fit.budgets == {"GPU0": 9 * MIB}
    assert "9.0 MiB; 10.0 MiB are free" in fit.explanation


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"memory": -1}, ValueError),
        ({"memory": "many"}, ValueError),
        ({"memory": 1.5}, TypeError),
        ({"memory": {"CUDA7": 1}}, ValueError),
        ({"memory": {"GPU0": None}}, TypeError),
        ({"memory": {3: 1}}, ValueError),
        ({"memory": [1]}, TypeError),
        ({"margin": -1}, ValueError),
        ({"margin": 0.5}, TypeError),
        ({"n_ctx": 0}, ValueError),
        ({"n_ctx": 2**40}, ValueError),
        ({"n_ctx": "long"}, TypeError),
        ({"n_ctx_min": 0}, ValueError),
        ({"n_ctx_min": 1.0}, TypeError),
        ({"goal": "fast"}, ValueError),
        ({"goal": None}, ValueError),
        ({"goal": ["decode"]}, ValueError),
        ({"model_params": 1}, TypeError),
        ({"context_params": 1}, TypeError),
        ({"model_params": ModelParams(vocab_only=True)}, ValueError),
    ],
)
def test_what_a_fit_refuses(tiny_path: MakeTiny, arguments: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        moebind.fit(tiny_path(n_expert=4), **{"devices": ["1GiB"], **arguments})  # type: ignore[arg-type]


def test_a_budget_beyond_the_device_is_told(demo_path: Path) -> None:
    for memory, what in (("2GiB", "memory is"), ({"GPU0": "2GiB"}, r"memory\['GPU0'\] is")):
        with pytest.raises(ValueError, match=f"{what} 2.00 GiB, and GPU0 has 400.0 MiB: give at most that"):
            moebind.fit(demo_path, memory=memory, context_params=SMALL, devices=["400MiB"])
    here = moebind.plan(demo_path, ModelParams(), SMALL, devices=[]).host.capacity
    for memory in (2 * here, {"Host": 2 * here}):
        with pytest.raises(ValueError, match=r"memory.* GiB, and Host has .* GiB: give at most that"):
            moebind.fit(demo_path, memory=memory, context_params=SMALL, devices=[])
        # Another machine may have it.
        fit = moebind.fit(demo_path, memory=memory, context_params=SMALL, devices=[], host=2 * here)
        assert fit.budgets == {"Host": 2 * here}
        assert fit.plan.host.capacity == 2 * here


def test_all_that_a_device_has_is_a_budget(demo_path: Path) -> None:
    fit = moebind.fit(demo_path, memory="400MiB", context_params=SMALL, devices=["400MiB"])
    assert fit.budgets == {"GPU0": 400 * 2**20}
    # One size for all, of which one device has less.
    fit = moebind.fit(demo_path, memory="500MiB", context_params=SMALL, devices=["600MiB", "300MiB"])
    assert fit.budgets == {"GPU0": 500 * 2**20, "GPU1": 300 * 2**20}
    assert "of a budget of 500.0 MiB; 600.0 MiB are free" in fit.explanation
    assert "of a budget of 300.0 MiB, all that it has; 300.0 MiB are free" in fit.explanation


def test_a_fit_for_another_host(shape_path: MakeShape) -> None:
    # Without layers there, the devices take copies of experts for prompts; the host has the rest.
    path = shape_path("mixtral-8x7b-q4_k_m", 6)
    sizes = {"GPU0": "3GiB", "Host": "3GiB"}
    fit = moebind.fit(path, memory=sizes, context_params=CONTEXT, devices=["24GiB"], host="64GiB")
    assert fit.budgets == {"GPU0": 3 * GIB, "Host": 3 * GIB}
    assert fit.plan.host.capacity == fit.plan.host.free == 64 * GIB
    assert within(fit)
    alone = moebind.fit(path, n_ctx=4096, devices=[], host="64GiB")
    assert alone.budgets == {"Host": 63 * GIB}
    small = moebind.fit(path, memory="3GiB", n_ctx=4096, devices=["24GiB"], host="1GiB")
    assert "The host needs" in small.explanation  # nobody limited it
    with pytest.raises(FitError, match="Host may take"):
        moebind.fit(path, n_ctx=4096, devices=[], host="1GiB")


def test_a_fit_that_the_host_has_no_room_for_does_not_send_to_itself(shape_path: Callable[[str], Path]) -> None:
    # Its experts have 350 GiB.
    fit = moebind.fit(shape_path("deepseek-v3-q4_k_m"), n_ctx=200_000, devices=["48GiB"])
    assert not fit.plan.fits
    assert "The host needs" in fit.explanation
    assert "trained with 163840 tokens" in fit.explanation
    assert "moebind.fit" not in str(fit)
    assert "moebind.fit" not in str(fit.plan)
    made_anew = moebind.plan(fit.plan.path, fit.model_params, fit.context_params, devices=["48GiB"])
    assert made_anew == fit.plan
    assert str(made_anew).endswith("moebind.fit finds parameters that fit.")


def test_a_dense_model_has_no_experts_to_speak_of(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_layer=6)
    whole = moebind.plan(path, context_params=SMALL, devices=["1GiB"]).devices[0].total
    fit = moebind.fit(path, memory=whole - 2**17, n_ctx=256, devices=["1GiB"])
    assert fit.model_params.n_gpu_layers >= 0
    assert "The model is too large for the devices: they take the last " in fit.explanation
    assert "expert" not in fit.explanation


@pytest.mark.parametrize("n_devices", [1, 2])
def test_layers_that_are_not_loaded_change_nothing(tiny_path: MakeTiny, n_devices: int) -> None:
    shape = {"arch": "glm4moe", "n_expert": 16, "n_embd": 128, "n_ff": 128}
    plain, ahead = tiny_path(n_layer=12, **shape), tiny_path(n_layer=13, n_mtp=1, **shape)
    whole = moebind.plan(plain, context_params=SMALL.with_n_ctx(8192), devices=["1GiB"])
    assert moebind.plan(ahead, context_params=SMALL.with_n_ctx(8192), devices=["1GiB"]).devices == whole.devices
    for share in (0.3, 0.35, 0.4, 0.5, 0.7) if n_devices == 1 else (0.35, 0.4, 0.5):
        sizes = [int(whole.device_bytes * share)] * n_devices
        ours, theirs = (
            moebind.fit(path, n_ctx=8192, margin=0, context_params=SMALL, devices=sizes) for path in (plain, ahead)
        )
        # Those layers count, and take nothing.
        layers = [fit.model_params.n_gpu_layers for fit in (ours, theirs)]
        assert layers == [-1, -1] or layers[0] + 1 == layers[1]
        assert theirs.plan.device_bytes >= 0.97 * ours.plan.device_bytes
        if n_devices == 1:
            assert theirs.plan.devices == ours.plan.devices
    loaded = moebind.plan(ahead, ModelParams(load_mtp=True), SMALL, devices=["1GiB"])
    assert loaded.expert_bytes == moebind.experts(ahead, load_mtp=True).nbytes
    assert loaded.expert_bytes * 12 == 13 * moebind.experts(ahead).nbytes
    assert moebind.experts(ahead).nbytes == moebind.experts(plain).nbytes == whole.expert_bytes
    assert moebind.experts(ahead).total_nbytes == moebind.experts(plain).total_nbytes


@pytest.mark.parametrize("n_seq_max", [1, 13, 64])
def test_no_context_is_longer_than_can_be(tiny_path: MakeTiny, n_seq_max: int) -> None:
    path = tiny_path(n_expert=4, n_head=2, n_head_kv=1, n_ctx_train=10 * 2**20)
    context = ContextParams(n_seq_max=n_seq_max)
    fit = moebind.fit(path, context_params=context, devices=["1GiB"], margin=0)
    assert 4096 * n_seq_max <= fit.context_params.n_ctx <= 10 * 2**20 * n_seq_max
    longer = fit.context_params.with_n_ctx(fit.context_params.n_ctx + 512 * n_seq_max)
    assert moebind.plan(path, None, longer, devices=["1GiB"]).devices[0].total > GIB


def test_the_longest_context_of_all(tiny_path: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    # The books on 134 million cells take gigabytes.
    monkeypatch.setattr("moebind.placement.fit.N_CTX_MAX", 2**18)
    monkeypatch.setattr("moebind.placement.search.FAR", 2**13)
    path = tiny_path(n_expert=4, n_ctx_train=2**17)
    fit = moebind.fit(path, context_params=ContextParams(n_seq_max=8), devices=["1TiB"])
    assert fit.context_params.n_ctx == 2**18


def test_a_budget_that_nothing_fits_into_is_the_first_line(tiny_path: Callable[..., Path]) -> None:
    fit = moebind.fit(tiny_path(), memory={"GPU0": "64KiB"}, devices=["1GiB"], host="8GiB", n_ctx=256)
    assert str(fit).splitlines()[0] == (
        "Nothing fits on the device: GPU0 may take 0.1 MiB, too little for any layer. "
        "The model runs on the processor, and everything is in host memory."
    )
    fit = moebind.fit(tiny_path(), devices=[], host="8GiB", n_ctx=256)
    assert str(fit).splitlines()[0] == "There is no device besides the processor: everything is in host memory."
