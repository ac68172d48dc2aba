"""Plans against what loads then hold: models, placements, contexts, cache types, micro-batches, attention.

    python benchmarks/planned_against_actual.py [MODEL.gguf ...]
    GGML_VK_VISIBLE_DEVICES=0 python benchmarks/planned_against_actual.py --described vulkan:2GiB    # Mesa's driver

Without models: the demo model and the dense one that it is made from. The device is the first GPU, or else a worker
process on this machine. Each row is a plan, a load and a context; the error is that of the device and class (weights,
cache, scratch memory) where it is largest.

With --described, the demo model alone, part by part, with its experts in pinned memory: each row is a plan for the
device, a plan for such a device as is described, and a load. The error is the largest difference between the three.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from programs import demo_model

import moebind
from moebind import (
    ContextParams,
    Device,
    DeviceType,
    FlashAttnType,
    GgmlType,
    LoadMode,
    MemoryBreakdown,
    Model,
    ModelParams,
    Plan,
)
from moebind._core.tables import Column, markdown_table

BASE = ContextParams(n_ctx=1024, n_threads=1, n_threads_batch=1)
PLACEMENTS: dict[str, Callable[[ModelParams], ModelParams]] = {
    "all": lambda params: params,
    "cpu-moe": lambda params: params.with_cpu_moe_all(strict=False),
    "n-cpu-moe=7": lambda params: params.with_n_cpu_moe(7, strict=False),
    "ot=ffn_down=CPU": lambda params: params.with_cpu_override("ffn_down"),
    "n-gpu-layers=10": lambda params: params.with_n_gpu_layers(10),
    "none": lambda params: params.with_n_gpu_layers(0),
}
CONTEXTS: dict[str, ContextParams] = {
    "1024": BASE,
    "8192": BASE.with_n_ctx(8192),
    "1024, Q8_0": BASE.with_type_k(GgmlType.Q8_0).with_type_v(GgmlType.Q8_0),
    "1024, ubatch 2048": BASE.with_n_ubatch(2048),
    "2048, ubatch 64, no FA": BASE.with_n_ctx(2048).with_n_ubatch(64).with_flash_attn_type(FlashAttnType.DISABLED),
    "4096, F32, no FA": BASE.with_n_ctx(4096)
    .with_type_k(GgmlType.F32)
    .with_type_v(GgmlType.F32)
    .with_flash_attn_type(FlashAttnType.DISABLED),
    "4096, 4 sequences": BASE.with_n_ctx(4096).with_n_seq_max(4),
    "2048, cache on the host": BASE.with_n_ctx(2048).with_offload_kqv(False),
}
MODES = [LoadMode.MMAP, LoadMode.NONE]
CLASSES = ("model", "context", "compute")
COLUMNS = [
    *map(Column, ("model", "placement", "context", "file")),
    *(Column(name, ".2f") for name in ("device: planned", "actual", "host: planned", "actual")),
    Column("off by"),
]


def combinations() -> Iterator[tuple[str, str, LoadMode]]:
    """Every placement and every context, each with several others."""
    for at, placement in enumerate(PLACEMENTS):
        for step in range(2):
            yield placement, list(CONTEXTS)[(2 * at + step) % len(CONTEXTS)], MODES[(at + step) % 2]


def compare(path: str, params: ModelParams, context: ContextParams) -> tuple[list[int], list[int], str, int, float]:
    """Planned and actual bytes, of device and host; where the error is largest, in bytes and of the class."""
    plan = moebind.plan(path, params, context)
    with Model.load_from_file(path, params) as model, model.new_context(context) as live:
        actual = live.memory_breakdown()
    errors = [
        (abs(getattr(ours, part) - getattr(theirs, part)), getattr(theirs, part), f"{theirs.name} {part}")
        for ours, theirs in zip(plan.devices, actual.devices, strict=True)
        for part in CLASSES
    ]
    error, size, where = max(errors)
    sums = [[each.device_bytes, each.host_bytes] for each in (plan, actual)]
    return sums[0], sums[1], where, error, error / size if size else 0.0


def rows(paths: list[str], device: Device, errors: list[tuple[int, float, str]]) -> Iterator[list[object]]:
    """A row for each combination; its largest error is added to ``errors``."""
    for path in paths:
        for placement, context, mode in combinations():
            params = PLACEMENTS[placement](ModelParams(devices=(device,), load_mode=mode))
            planned, actual, where, error, share = compare(path, params, CONTEXTS[context])
            errors.append((error, share, where))
            sizes = [size / 2**20 for pair in zip(planned, actual, strict=True) for size in pair]
            read = "mapped" if mode is LoadMode.MMAP else "read"
            yield [Path(path).name, placement, context, read, *sizes, f"{error} bytes ({share:.2%})" if error else "0"]


READ = ModelParams(load_mode=LoadMode.NONE)
PARTS: dict[str, tuple[ModelParams, ContextParams]] = {
    "all on the device": (READ, BASE),
    "with_n_cpu_moe(15)": (READ.with_n_cpu_moe(15), BASE),
    "with_cpu_moe_all()": (READ.with_cpu_moe_all(), BASE),
    "the same with a cache of 200MiB": (READ.with_cpu_moe_all(), BASE.with_moe_cache_size("200MiB")),
}
PART_COLUMNS = [
    Column("placement"),
    *(Column(name, ".2f") for name in ("weights", "cache", "scratch", "cache of experts", "device")),
    *(Column(name, ".2f") for name in ("weights on the host, pinned", "scratch, pinned")),
    Column("off by"),
]


def parts(memory: Plan | MemoryBreakdown) -> list[int]:
    """What the first device holds, and the pinned memory of the host."""
    device = memory.devices[0]
    pinned = [each for each in memory.host.buffers if each.name.endswith("_Host")]
    sums = [sum(getattr(each, part) for each in pinned) for part in ("model", "compute")]
    return [device.model, device.context, device.compute, device.moe_cache, device.total, *sums]


def part_rows(
    path: str, device: Device, described: str, errors: list[tuple[int, float, str]]
) -> Iterator[list[object]]:
    """A row for each placement, of what a load holds; its largest error is added to ``errors``."""
    for name, (params, context) in PARTS.items():
        there = params.with_devices((device,))
        planned = [moebind.plan(path, there, context), moebind.plan(path, params, context, devices=[described])]
        with Model.load_from_file(path, there) as model, model.new_context(context) as live:
            actual = parts(live.memory_breakdown())
        error, size = max(
            (abs(ours - theirs), theirs) for plan in planned for ours, theirs in zip(parts(plan), actual, strict=True)
        )
        errors.append((error, error / size if size else 0.0, name))
        yield [name, *(each / 2**20 for each in actual), f"{error} bytes" if error else "0"]


def main() -> None:
    """Print a table, and the worst error."""
    parser = argparse.ArgumentParser(description="What plans say, against what is allocated.")
    parser.add_argument("paths", nargs="*", metavar="FILE", help="models; the demo models by default")
    parser.add_argument("--described", metavar="DEVICE", help="such as vulkan:2GiB: part by part, and a plan for this")
    chosen = parser.parse_args()
    default = [demo_model()] if chosen.described else [demo_model(), demo_model(dense=True)]
    paths: list[str] = chosen.paths or default
    gpus = [each for each in moebind.devices() if each.type in {DeviceType.GPU, DeviceType.IGPU}]
    errors: list[tuple[int, float, str]] = []
    with contextlib.ExitStack() as stack:
        device: Device = gpus[0] if gpus else stack.enter_context(moebind.loopback_device())
        print(f"{device.name}: {device.description}\n")
        if chosen.described:
            columns = PART_COLUMNS
            lines = (row for path in paths for row in part_rows(path, device, chosen.described, errors))
        else:
            columns, lines = COLUMNS, rows(paths, device, errors)
        for line in markdown_table(columns, lines):
            print(line, flush=True)
    worst, share, where = max(errors)
    print(f"\n{len(errors)} combinations; sizes in MiB. Worst: {worst} bytes ({share:.2%} of {where})")


if __name__ == "__main__":
    main()
