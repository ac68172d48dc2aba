"""A plan says what a load then holds: for each device and each class, and in the worker's own memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from held import make_room_for_names

import moebind
from conftest import SMALL
from moebind import (
    Batch,
    BufferMemory,
    ContextParams,
    Device,
    DeviceMemory,
    FlashAttnType,
    GgmlType,
    LazyMode,
    LoadMode,
    Model,
    ModelParams,
)
from moebind.backend.loopback import worker_pids

MakeTiny = Callable[..., Path]
Change = Callable[[ModelParams], ModelParams]

MODELS: dict[str, dict[str, object]] = {
    "dense": {},
    "experts": {"n_expert": 4, "n_layer": 3},
    "split": {"n_expert": 4, "split": 3},
    "dense first": {"arch": "deepseek", "n_expert": 4, "n_dense_layers": 1, "n_layer": 3},
    "fused": {"arch": "granite_swa", "n_expert": 4},
    "grouped": {"arch": "grovemoe", "n_expert": 4},
}
PLACEMENTS: dict[str, Change] = {
    "all on the device": lambda params: params,
    "experts on the host": lambda params: params.with_cpu_moe_all(strict=False),
    "first layer's experts": lambda params: params.with_n_cpu_moe(1, strict=False),
    "one matrix": lambda params: params.with_cpu_override("ffn_down", strict=False),
    "one layer": lambda params: params.with_n_gpu_layers(1),
    "nothing": lambda params: params.with_n_gpu_layers(0),
}
CONTEXTS = {
    "defaults": SMALL,
    "long": SMALL.with_n_ctx(2048),
    "quantised cache": SMALL.with_type_k(GgmlType.Q8_0).with_type_v(GgmlType.Q8_0),
    "plain attention": SMALL.with_flash_attn_type(FlashAttnType.DISABLED).with_type_k(GgmlType.F32),
    "small batches": SMALL.with_n_ubatch(32),
    "several sequences": SMALL.with_n_seq_max(4).with_n_ctx(1024).with_n_ubatch(128),
    "cache on the host": SMALL.with_offload_kqv(False),
}
# Every model, placement, context and way of reading is there, each with several others.
COMBINATIONS = [
    (model, placement, context, mode)
    for number, (model, placement) in enumerate((model, placement) for model in MODELS for placement in PLACEMENTS)
    for context in [list(CONTEXTS)[number % len(CONTEXTS)]]
    for mode in [[LoadMode.AUTO, LoadMode.NONE, LoadMode.MMAP][number // 2 % 3]]
]


def close(planned: int, actual: int) -> bool:
    return abs(planned - actual) <= max(0.01 * actual, 4096)


def _held(device: DeviceMemory) -> list[BufferMemory]:
    return [buffer for buffer in device.buffers if buffer.total]


def assert_same(planned: tuple[DeviceMemory, ...], actual: tuple[DeviceMemory, ...]) -> None:
    for ours, theirs in zip(planned, actual, strict=True):
        assert (ours.name, ours.type) == (theirs.name, theirs.type)
        for buffer, held in zip(_held(ours), _held(theirs), strict=True):
            assert buffer.name == held.name
            assert close(buffer.model, held.model), (buffer, held)
            assert close(buffer.context, held.context), (buffer, held)
            assert close(buffer.compute, held.compute), (buffer, held)


@pytest.mark.parametrize(("model", "placement", "context", "mode"), COMBINATIONS)
def test_a_plan_is_what_a_load_holds(
    tiny_path: MakeTiny, device: Device, model: str, placement: str, context: str, mode: LoadMode
) -> None:
    path = tiny_path(n_head=2, n_head_kv=1, **MODELS[model])
    params = PLACEMENTS[placement](ModelParams(devices=(device,), load_mode=mode))
    plan = moebind.plan(path, params, CONTEXTS[context])
    with Model.load_from_file(path, params) as loaded, loaded.new_context(CONTEXTS[context]) as live:
        actual = live.memory_breakdown()
        assert plan.n_ctx == live.n_ctx
        assert plan.n_layer == loaded.n_layer
    assert_same(plan.devices, actual.devices)


@pytest.mark.parametrize("placement", ["all on the device", "nothing"])
@pytest.mark.parametrize("mode", [LoadMode.AUTO, LoadMode.NONE, LoadMode.MMAP])
@pytest.mark.parametrize("lazy", LazyMode)
def test_tensors_that_are_read_row_by_row(
    tiny_path: MakeTiny, device: Device, placement: str, mode: LoadMode, lazy: LazyMode
) -> None:
    path = tiny_path(arch="gemma4")
    params = PLACEMENTS[placement](ModelParams(devices=(device,), load_mode=mode, lazy_mode=lazy))
    plan = moebind.plan(path, params, SMALL)
    with Model.load_from_file(path, params) as model, model.new_context(SMALL) as live:
        assert_same(plan.devices, live.memory_breakdown().devices)
    mapped = {buffer.name: buffer.model for buffer in plan.host.buffers}.get("CPU_Mapped", 0)
    alone = moebind.Gguf.from_file(path).tensors["per_layer_token_embd.weight"].nbytes
    assert (mapped == alone) is (lazy is LazyMode.ON and not plan.mapped)
    # Only rows of it are read.
    assert plan.lazy == (alone if lazy is LazyMode.ON else 0)
    assert plan._host_needs == plan.host.total - plan.gaps - plan.lazy
    assert ("of which only rows are read" in str(plan)) is (lazy is LazyMode.ON)


@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("mode", [LoadMode.AUTO, LoadMode.NONE])
def test_repacked_and_mapped_weights(demo_path: Path, device: Device, mode: LoadMode, extra: bool) -> None:
    # Its quantised weights, unlike those of the tiny models, can be repacked on some processors.
    params = ModelParams(devices=(device,), load_mode=mode, use_extra_bufts=extra).with_cpu_moe_all()
    context = SMALL.with_n_ctx(1024)
    plan = moebind.plan(demo_path, params, context)
    with Model.load_from_file(demo_path, params) as model, model.new_context(context) as live:
        assert_same(plan.devices, live.memory_breakdown().devices)
    names = {buffer.name for buffer in plan.host.buffers}
    assert ("CPU_Mapped" in names) is (mode is LoadMode.AUTO) is plan.mapped


def test_all_on_the_cpu(demo_path: Path) -> None:
    params = ModelParams(n_gpu_layers=0, devices=())
    plan = moebind.plan(demo_path, params, SMALL)
    with Model.load_from_file(demo_path, params) as model, model.new_context(SMALL) as live:
        assert_same(plan.devices, live.memory_breakdown().devices)
    assert plan.device_bytes == 0


def test_two_devices(tiny_path: MakeTiny, device: Device) -> None:
    path = tiny_path(n_expert=4, n_layer=6)
    with moebind.loopback_device() as other:
        for split in [(1.0, 1.0), (1.0, 5.0)]:
            for change in [PLACEMENTS["all on the device"], PLACEMENTS["first layer's experts"]]:
                params = change(ModelParams(devices=(device, other), tensor_split=split))
                plan = moebind.plan(path, params, SMALL)
                with Model.load_from_file(path, params) as model, model.new_context(SMALL) as live:
                    assert_same(plan.devices, live.memory_breakdown().devices)


def test_the_worker_holds_what_was_planned(demo_path: Path) -> None:
    context = SMALL.with_n_ctx(2048)
    for change in [PLACEMENTS["all on the device"], PLACEMENTS["experts on the host"]]:
        with moebind.loopback_device() as device:
            worker = psutil.Process(worker_pids[device.name])
            params = change(ModelParams(devices=(device,)))
            plan = moebind.plan(demo_path, params, context).devices[0]
            before = worker.memory_info().rss
            with Model.load_from_file(demo_path, params) as model, model.new_context(context) as live:
                live.decode(Batch.get_one([1] * 64))
                live.synchronize()
                held = worker.memory_info().rss - before
        # Its weights and cache are filled; scratch memory only as far as this computation went. What the worker
        # itself takes meanwhile is little.
        assert plan.model + plan.context - 4 * 2**20 < held < plan.total + 24 * 2**20


def test_a_described_device_takes_what_a_worker_does(tiny_path: MakeTiny, device: Device) -> None:
    path = tiny_path(n_expert=4, n_layer=3)
    context = SMALL.with_op_offload(False)  # with it, a worker does no more, and a GPU does
    for change in PLACEMENTS.values():
        described = moebind.plan(path, change(ModelParams()), context, devices=["1GiB"])
        worker = moebind.plan(path, change(ModelParams(devices=(device,))), context)
        for ours, theirs in zip(described.devices, worker.devices, strict=True):
            assert close(ours.model, theirs.model)
            assert close(ours.context, theirs.context)
            assert close(ours.compute, theirs.compute)


def test_a_plan_leaves_nothing_behind(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    process = psutil.Process()
    context = ContextParams(n_ctx=8192, n_threads=1, n_threads_batch=1)
    make_room_for_names()
    for _ in range(10):
        moebind.plan(path, ModelParams(), context, devices=["1GiB"])
    before, files = process.memory_info().rss, process.num_fds()
    for _ in range(100):
        moebind.plan(path, ModelParams(), context, devices=["1GiB"])
    assert process.memory_info().rss - before < 4 * 2**20
    assert process.num_fds() <= files
