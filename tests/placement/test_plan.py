"""Plans: what they say, for what they are asked, and what they refuse."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moebind
from conftest import SMALL
from moebind import (
    ContextCreationError,
    ContextParams,
    Device,
    DeviceType,
    FlashAttnType,
    GgmlType,
    LoadMode,
    Model,
    ModelLoadError,
    ModelParams,
    SplitMode,
)

MakeTiny = Callable[..., Path]
MIB = 2**20


def mib(size: int) -> int:
    return size // MIB


# --- the published table (docs/offload.md) ---


def test_the_published_figure_of_phi_3_5_moe(shape_path: Callable[[str], Path]) -> None:
    path, context = shape_path("phi-3.5-moe-q4_k_m"), ContextParams(n_ctx=4096)
    everything = moebind.plan(path, ModelParams(), context, devices=["96GiB"])
    device, host = everything.devices
    assert (mib(device.model), mib(device.context), mib(device.compute), mib(device.total)) == (24100, 512, 111, 24723)
    assert round(device.total / 2**30, 2) == 24.14
    assert (mib(host.model), mib(host.compute)) == (70, 36)

    experts = ModelParams().with_cpu_moe_all().with_load_mode(LoadMode.NONE)
    offloaded = moebind.plan(path, experts, context, devices=["96GiB"])
    device, host = offloaded.devices
    # With room for copies of experts, which long prompts are multiplied with on the device.
    assert (mib(device.model), mib(device.context), mib(device.compute)) == (850, 512, 405)
    assert round(device.total / 2**30, 2) == 1.73
    assert round(offloaded.reduction_vs(everything), 3) == 0.928
    assert (mib(host.model), mib(host.compute)) == (5320 + 18000, 36)

    without_copies = moebind.plan(path, experts, context.with_op_offload(False), devices=["96GiB"])
    device, host = without_copies.devices
    assert (mib(device.model), mib(device.context), mib(device.compute)) == (850, 512, 98)
    assert round(without_copies.reduction_vs(everything), 3) == 0.941
    assert (mib(host.model), mib(host.compute)) == (5320 + 18000, 95)


@pytest.mark.parametrize(
    "name", ["phi-3.5-moe-q2_k", "mixtral-8x7b-q4_k_m", "gpt-oss-120b-mxfp4", "deepseek-v3-q4_k_m"]
)
def test_shapes_of_large_models_are_planned(shape_path: Callable[[str], Path], name: str) -> None:
    path = shape_path(name)
    plans = [
        moebind.plan(path, params, ContextParams(n_ctx=2048), devices=["1TiB"])
        for params in (ModelParams(), ModelParams().with_cpu_moe_all())
    ]
    summary = moebind.experts(path)
    assert plans[0].expert_bytes == summary.nbytes
    assert plans[1].expert_bytes == 0
    assert plans[0].devices[0].model - plans[1].devices[0].model == pytest.approx(summary.nbytes, rel=1e-4)
    assert path.stat().st_size > summary.total_nbytes
    assert path.stat().st_blocks * 512 < 20 * MIB


# --- what it reads ---


def test_nothing_is_loaded_or_listed(tiny_path: MakeTiny) -> None:
    before = moebind.devices()
    plan = moebind.plan(tiny_path(n_expert=4), ModelParams(), SMALL, devices=["1GiB", "2GiB"])
    assert [device.name for device in plan.devices] == ["GPU0", "GPU1", "Host"]
    assert moebind.devices() == before


# --- what it says ---


def test_a_plan_as_text(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    plan = moebind.plan(path, ModelParams(), SMALL, devices=["1GiB"])
    lines = str(plan).splitlines()
    assert lines[0] == f"{path.name}: n_ctx 256, n_ubatch 512, cache F16"
    assert lines[1].split() == ["memory,", "MiB", "model", "context", "compute", "total", "free"]
    assert lines[2].split()[0::5] == ["GPU0", "1024.0"]
    assert lines[-1] == "It fits."
    assert len(lines) < 24
    assert plan.fits
    assert plan.advice == ()
    assert not plan.missing


def test_a_plan_as_values(tiny_path: MakeTiny) -> None:
    plan = moebind.plan(tiny_path(n_expert=4), ModelParams(), SMALL, devices=["1GiB"])
    values = json.loads(json.dumps(plan.to_dict()))
    assert list(values) == [
        "path", "mmproj", "n_ctx", "mapped", "gaps", "lazy", "n_swa", "model_params", "context_params", "draft", "fits",
        "missing", "advice", "device_bytes", "host_bytes", "expert_bytes", "devices", "bytes_read",
        "weights_per_token", "bytes_per_token",
    ]  # fmt: skip
    assert list(values["devices"][0]) == [
        "name", "type", "model", "context", "moe_cache", "compute", "total", "free", "capacity", "buffers",
    ]  # fmt: skip
    assert values["devices"][0]["capacity"] == 2**30
    assert values["device_bytes"] == plan.devices[0].total
    assert values["host_bytes"] == plan.host.total
    assert plan.host.type is DeviceType.CPU


def test_what_does_not_fit_is_told(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=8, n_layer=6)
    needed = moebind.plan(path, ModelParams(), SMALL, devices=["1GiB"]).devices[0]
    small = moebind.plan(path, ModelParams(), SMALL, devices=[needed.total - 100_000])
    assert not small.fits
    assert small.missing == {"GPU0": 100_000}
    assert "GPU0 lacks 0.1 MiB: with_n_cpu_moe(1)" in str(small)
    # The advice is good.
    assert moebind.plan(path, ModelParams().with_n_cpu_moe(1), SMALL, devices=[needed.total - 100_000]).fits
    assert "with_cpu_moe_all()" in str(moebind.plan(path, ModelParams(), SMALL, devices=[needed.total - 3_300_000]))
    tiny = moebind.plan(path, ModelParams(), SMALL, devices=["100kB"])
    assert "leave it out of the devices" in str(tiny)
    assert "moebind.fit" in str(tiny)


def test_the_capacity_of_a_loopback_device_counts(tiny_path: MakeTiny) -> None:
    with moebind.loopback_device(memory=MIB) as device:
        plan = moebind.plan(tiny_path(n_expert=4), ModelParams(devices=(device,)), SMALL)
        assert (plan.devices[0].capacity, plan.devices[0].free) == (MIB, MIB)
        assert plan.missing == {device.name: plan.devices[0].total - MIB}


def test_reduction_against_a_live_context(tiny_path: MakeTiny, device: Device) -> None:
    path = tiny_path(n_expert=4)
    with Model.load_from_file(path, ModelParams(devices=(device,))) as model, model.new_context(SMALL) as context:
        live = context.memory_breakdown()
    plan = moebind.plan(path, ModelParams(devices=(device,)).with_cpu_moe_all(), SMALL)
    assert 0.2 < plan.reduction_vs(live) < 1.0


# --- what it refuses ---


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"model_params": ContextParams()}, TypeError),
        ({"context_params": ModelParams()}, TypeError),
        ({"devices": "24GiB"}, TypeError),
        ({"devices": 24}, TypeError),
        ({"devices": [24.0]}, TypeError),
        ({"devices": [True]}, TypeError),
        ({"devices": ["24 parsecs"]}, ValueError),
        ({"devices": ["-1GiB"]}, ValueError),
        ({"devices": ["9" * 20]}, ValueError),
        ({"devices": ["nan"]}, ValueError),
        ({"devices": [0]}, ValueError),
        ({"devices": [-1]}, ValueError),
        ({"devices": [2**70]}, ValueError),
        ({"devices": ["1GiB"] * 16}, ValueError),
        ({"devices": [moebind.devices()[0]]}, ValueError),
        ({"model_params": ModelParams(vocab_only=True)}, ValueError),
        ({"model_params": ModelParams().with_tensor_override("ffn_down", "GPU7")}, ValueError),
        ({"model_params": ModelParams().with_cpu_override("nothing")}, ModelLoadError),
        ({"model_params": ModelParams().with_kv_override("llama.block_count", 700)}, ModelLoadError),
        # Some of these would end the process in a load: a plan has the checks of one.
        ({"model_params": ModelParams().with_kv_override("llama.expert_used_count", 9)}, ModelLoadError),
        ({"model_params": ModelParams().with_kv_override("llama.attention.head_count_kv", 0)}, ModelLoadError),
        ({"model_params": ModelParams().with_kv_override("llama.rope.dimension_count", 2**31)}, ModelLoadError),
        (
            {
                "context_params": ContextParams(n_ctx=0),
                "model_params": ModelParams().with_kv_override("llama.context_length", 2**31 - 512),
            },
            ContextCreationError,
        ),
        ({"context_params": ContextParams(n_seq_max=64, n_batch=32)}, ContextCreationError),
        ({"context_params": ContextParams(type_k=GgmlType.Q8_0)}, ContextCreationError),
        (
            {"context_params": ContextParams(type_k=GgmlType.Q8_0, flash_attn_type=FlashAttnType.DISABLED)},
            ContextCreationError,
        ),
    ],
)
def test_what_a_plan_refuses(tiny_path: MakeTiny, arguments: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        moebind.plan(tiny_path(n_expert=4), **arguments)  # type: ignore[arg-type]
    assert moebind.plan(tiny_path(n_expert=4), devices=["1GiB"]).fits


def test_a_device_twice(tiny_path: MakeTiny, device: Device) -> None:
    with pytest.raises(ValueError, match="twice"):
        moebind.plan(tiny_path(), devices=[device, device])
    mixed = moebind.plan(tiny_path(n_expert=4), ModelParams(), SMALL, devices=[device, "1GiB"])
    assert [each.name for each in mixed.devices] == [device.name, "GPU1", "Host"]


def test_an_override_to_a_described_device(tiny_path: MakeTiny) -> None:
    params = ModelParams(n_gpu_layers=0).with_tensor_override("ffn_down_exps", "GPU0")
    plan = moebind.plan(tiny_path(n_expert=4), params, SMALL, devices=["1GiB"])
    assert {name for name, place in plan.places.items() if place == "GPU0"} == {
        f"blk.{layer}.ffn_down_exps.weight" for layer in range(2)
    }


def test_plans_in_threads_and_children(tiny_path: MakeTiny) -> None:
    from concurrent.futures import ThreadPoolExecutor

    path = tiny_path(n_expert=4)

    def total(_: int) -> int:
        return moebind.plan(path, ModelParams(), SMALL, devices=["1GiB"]).device_bytes

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(total, range(24)))) == 1
    child = os.fork()
    if child == 0:
        os._exit(0 if total(0) > 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert total(0) > 0


# --- another machine ---


def test_a_host_that_is_not_here(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=8, n_layer=6)
    here = moebind.plan(path, ModelParams(), SMALL, devices=["1GiB"])
    there = moebind.plan(path, ModelParams(), SMALL, devices=["1GiB"], host="64GiB")
    assert there == here  # the same bytes, in the same places
    assert (there.host.free, there.host.capacity) == (64 * 2**30, 64 * 2**30)
    assert here.host.capacity != there.host.capacity
    needs = here.host.total - here.gaps
    for size, fits in ((needs, True), (needs - 1, False)):
        plan = moebind.plan(path, ModelParams(), SMALL, devices=["1GiB"], host=size)
        assert plan.fits is fits
    assert plan.missing == {"Host": 1}
    assert plan.advice[0].startswith("The host lacks 0.0 MiB")


def test_a_machine_without_gpus(tiny_path: MakeTiny) -> None:
    plan = moebind.plan(tiny_path(n_expert=4), None, SMALL, devices=[], host="4MiB")
    assert [device.name for device in plan.devices] == ["Host"]
    assert plan.host.capacity == 4 * 2**20
    beside = moebind.plan(tiny_path(n_expert=4), ModelParams(n_gpu_layers=0), SMALL, host="4MiB")  # with what is here
    assert beside.host.capacity == 4 * 2**20


@pytest.mark.parametrize(
    ("host", "kind", "message"),
    [
        (0, ValueError, "host is 0"),
        (-1, ValueError, "host is -1"),
        ("much", ValueError, "host is 'much'; it takes a number of bytes"),
        (1.5, TypeError, "host is 1.5"),
        (True, TypeError, "host is True"),
        (["1GiB"], TypeError, "host is"),
    ],
)
def test_what_is_no_host(tiny_path: MakeTiny, host: Any, kind: type[Exception], message: str) -> None:
    for call in (moebind.plan, moebind.fit):
        with pytest.raises(kind, match=message):
            call(tiny_path(), devices=["1GiB"], host=host)


def test_tensors_that_are_cut_up_are_not_planned(tiny_path: MakeTiny) -> None:
    """llama.cpp makes one device of all of them, so that the sum would pass for what one has."""
    for call in (moebind.plan, moebind.fit):
        for devices in (["1GiB", "1GiB"], ["1GiB"], [], None):
            with pytest.raises(ValueError, match="split_mode is TENSOR, which cuts up each tensor"):
                call(tiny_path(), model_params=ModelParams(split_mode=SplitMode.TENSOR), devices=devices)
        with pytest.raises(ValueError, match="split_mode is ROW, for which llama.cpp needs a buffer"):
            call(tiny_path(), model_params=ModelParams(split_mode=SplitMode.ROW), devices=["1GiB"])


def test_parameters_and_advice_are_among_the_values(tiny_path: MakeTiny) -> None:
    model = ModelParams(progress_callback=lambda _: True).with_n_cpu_moe(1)
    plan = moebind.plan(tiny_path(n_expert=4), model, SMALL.with_abort_callback(lambda: False), devices=["1MiB"])
    values = json.loads(json.dumps(plan.to_dict()))
    # Callbacks change nothing that is planned, and cannot be written.
    assert ModelParams.from_dict(values["model_params"]) == model.with_progress_callback(None)
    assert ContextParams.from_dict(values["context_params"]) == SMALL
    assert values["missing"] == plan.missing != {}
    assert values["advice"] == list(plan.advice) != []


def test_windows_of_a_model(tiny_path: MakeTiny) -> None:
    assert moebind.plan(tiny_path(arch="granite_swa", n_expert=4), None, SMALL, devices=["1GiB"]).n_swa == 64
    assert moebind.plan(tiny_path(), None, SMALL, devices=["1GiB"]).n_swa == 0


@pytest.mark.parametrize(("asked", "n_seq_max", "given"), [(1000, 1, 1024), (300, 3, 768), (768, 3, 768), (0, 1, 512)])
def test_a_length_that_is_rounded_up_is_told(tiny_path: MakeTiny, asked: int, n_seq_max: int, given: int) -> None:
    plan = moebind.plan(tiny_path(), None, ContextParams(n_ctx=asked, n_seq_max=n_seq_max))
    assert plan.n_ctx == given
    sentence = f"n_ctx {asked} is rounded up to {given}: each sequence has a multiple of 256 tokens."
    assert (sentence in str(plan).splitlines()) == (0 < asked < given)


@pytest.mark.parametrize(
    ("asked", "n_seq_max", "unified", "n_ctx_seq"),
    [(512, 1, False, 512), (768, 1, False, 768), (1024, 2, False, 512), (1024, 2, True, 1024), (0, 1, False, 512)],
)
def test_a_length_beyond_the_trained_one_is_told(
    tiny_path: MakeTiny, asked: int, n_seq_max: int, unified: bool, n_ctx_seq: int
) -> None:
    context = ContextParams(n_ctx=asked, n_seq_max=n_seq_max, kv_unified=unified)
    for found in (
        moebind.plan(tiny_path(), None, context),
        moebind.fit(tiny_path(), context_params=context, n_ctx=asked or None, n_ctx_min=256),
    ):
        said = str(found)
        sentence = f"A sequence can have {n_ctx_seq} tokens, and the model was trained with 512: what it writes"
        assert (sentence in said) == (n_ctx_seq > 512)
    overridden = moebind.ModelParams().with_kv_override("llama.context_length", 4096)
    assert "was trained with" not in str(moebind.plan(tiny_path(), overridden, context))


@pytest.mark.parametrize("given", [{"devices": [12]}, {"host": 64}, {"devices": ["24GiB", 24576]}])
def test_numbers_that_lack_a_unit(tiny_path: MakeTiny, given: dict[str, Any]) -> None:
    for call in (moebind.plan, moebind.fit):
        with pytest.raises(ValueError, match="which is so many bytes: give a unit, as in '(12GiB|64GiB|24576MiB)'"):
            call(tiny_path(), **given)
    with pytest.raises(ValueError, match="memory is 12, which is so many bytes: give a unit, as in '12GiB'"):
        moebind.fit(tiny_path(), memory=12, devices=["1GiB"])
    with pytest.raises(ValueError, match=r"memory\['GPU0'\] is 12, which is so many bytes"):
        moebind.fit(tiny_path(), memory={"GPU0": 12}, devices=["1GiB"])
