"""Plans of models with recurrent state, which llama.cpp allocates even when it only counts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from conftest import SMALL
from moebind import ContextParams, Device, DeviceMemory, GgmlType, Model, ModelParams

#: In which every other layer has recurrent state, and deepseek4, which has states of another kind.
ARCHITECTURES = (
    *("qwen3next", "qwen35", "qwen35moe", "qwen4exp", "granitehybrid", "nemotron_h", "nemotron_h_moe", "lfm2"),
    *("lfm2moe", "jamba", "falcon-h1", "plamo2", "minimax-01", "kimi-linear", "kimi-k3", "bailingmoe3", "deepseek4"),
    *("mamba", "mamba2", "rwkv6qwen2", "arwkv7"),
)
PLACEMENTS: dict[str, Callable[[ModelParams], ModelParams]] = {
    "all on the device": lambda params: params,
    "experts on the host": lambda params: params.with_cpu_moe_all(strict=False),
    "one layer": lambda params: params.with_n_gpu_layers(2),
    "nothing": lambda params: params.with_n_gpu_layers(0),
}
CONTEXTS = {
    "one sequence": SMALL,
    "several sequences": SMALL.with_n_seq_max(8).with_n_ctx(2048),
    "one cache for all": SMALL.with_n_seq_max(8).with_kv_unified(True),
    "state on the host": SMALL.with_offload_kqv(False)
    .with_n_seq_max(3)
    .with_n_ctx(768)
    .with_type_k(GgmlType.F32)
    .with_type_v(GgmlType.F32),
}


def sizes(devices: tuple[DeviceMemory, ...]) -> list[tuple[str, int, int, int]]:
    """What each buffer holds."""
    return [
        (buffer.name, buffer.model, buffer.context, buffer.compute)
        for device in devices
        for buffer in device.buffers
        if buffer.total
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_plan_is_what_a_load_holds(
    architecture_path: Callable[[str], Path], device: Device, architecture: str
) -> None:
    path = architecture_path(architecture)
    for number, change in enumerate(PLACEMENTS.values()):
        context = list(CONTEXTS.values())[number]
        for devices in ((device,), ()):
            params = change(ModelParams(devices=devices))
            plan = moebind.plan(path, params, context)
            with Model.load_from_file(path, params) as model, model.new_context(context) as live:
                assert sizes(plan.devices) == sizes(live.memory_breakdown().devices)
                assert plan.n_ctx == live.n_ctx
            assert sum(each.context for each in plan.devices) > 0


@pytest.mark.parametrize("architecture", ["minimax-01", "kimi-linear"])
def test_the_graph_that_is_reserved_last(
    architecture_path: Callable[[str], Path], device: Device, architecture: str
) -> None:
    # For these, llama.cpp reserves one for a single sequence, which takes more than those of several.
    path = architecture_path(architecture)
    for change in PLACEMENTS.values():
        for context in CONTEXTS.values():
            params = change(ModelParams(devices=(device,)))
            plan = moebind.plan(path, params, context)
            with Model.load_from_file(path, params) as model, model.new_context(context) as live:
                assert sizes(plan.devices) == sizes(live.memory_breakdown().devices)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_devices_that_are_only_described(
    architecture_path: Callable[[str], Path], device: Device, architecture: str
) -> None:
    path = architecture_path(architecture)
    for change in PLACEMENTS.values():
        for context in CONTEXTS.values():
            described = moebind.plan(path, change(ModelParams()), context, devices=["1GiB"])
            worker = moebind.plan(path, change(ModelParams(devices=(device,))), context)
            for ours, theirs in zip(described.devices, worker.devices, strict=True):
                assert ours.context == pytest.approx(theirs.context, rel=0.01, abs=4096)
                assert ours.model == pytest.approx(theirs.model, rel=0.01, abs=16384)
    assert len(moebind.plan(path, devices=["1GiB", "1GiB"]).devices) == 3
    fit = moebind.fit(path, n_ctx=512, devices=["1GiB"])
    assert fit.plan.fits


def test_planning_takes_no_memory_of_what_it_plans(tiny_path: Callable[..., Path]) -> None:
    path = tiny_path(arch="mamba", n_layer=16, n_embd=1024, n_head=2, n_head_kv=2)
    code = (
        "import resource, sys, moebind; from moebind import *\n"
        "def plan(n):\n"
        "    where = ['8GiB'] if sys.argv[2] == 'described' else None\n"
        "    made = moebind.plan(sys.argv[1], None, ContextParams(n_ctx=65536, n_seq_max=n), devices=where)\n"
        "    return sum(each.context for each in made.devices)\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10\n"
        "plan(1); before = peak(); print(plan(256), peak() - before)"
    )
    for devices in ("described", "own"):
        done = subprocess.run(
            [sys.executable, "-c", code, path, devices], capture_output=True, text=True, check=True, timeout=120
        )
        planned, taken = map(int, done.stdout.split())
        assert planned > 256 * 2**20
        assert taken < 16 * 2**20


def test_a_context_of_a_model_without_weights_takes_no_memory(tiny_path: Callable[..., Path]) -> None:
    path = tiny_path(arch="lfm2", n_layer=4)
    params = ModelParams(n_gpu_layers=0, no_alloc=True)
    context = ContextParams(n_ctx=65536, n_seq_max=256, n_threads=1, n_threads_batch=1)
    with Model.load_from_file(path, params) as model, model.new_context(context) as live:
        held = live.memory_breakdown().host.context
        live.kv_cache_clear()  # which there is nothing of
    assert held == moebind.plan(path, ModelParams(n_gpu_layers=0), context).host.context
