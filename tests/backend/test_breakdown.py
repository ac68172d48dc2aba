"""Memory by device and purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import SMALL
from moebind import BufferMemory, Context, Device, DeviceMemory, DeviceType, MemoryBreakdown, Model, ModelParams


def test_memory_breakdown(context: Context, moe: Model) -> None:
    breakdown = context.memory_breakdown()
    assert breakdown.device_bytes == 0
    assert breakdown.host.model >= moe.size * 0.9
    assert breakdown.host.context > 0
    assert breakdown.host_bytes == breakdown.host.total == sum(buffer.total for buffer in breakdown.host.buffers)
    assert "Host" in str(breakdown)
    assert breakdown.reduction_vs(breakdown) == 0.0


def test_a_breakdown_has_what_is_free(moe: Model) -> None:
    with moe.new_context(SMALL) as context:
        host = context.memory_breakdown().host
    assert 0 < host.free <= host.capacity


def breakdown(*on_devices: int) -> MemoryBreakdown:
    devices = [
        DeviceMemory(f"GPU{at}", DeviceType.GPU, size, 2, 1, (BufferMemory(f"GPU{at}", size, 2, 1),), 7, 9)
        for at, size in enumerate(on_devices)
    ]
    pinned = (BufferMemory("CPU", 3 * 2**20, 0, 0), BufferMemory("GPU_Host", 0, 0, 2**19))
    return MemoryBreakdown((*devices, DeviceMemory("Host", DeviceType.CPU, 3 * 2**20, 0, 2**19, pinned, 5, 6)))


def test_sums() -> None:
    both = breakdown(10, 20)
    assert both.host.name == "Host"
    assert both.device_bytes == 10 + 20 + 2 * 3
    assert both.host_bytes == 3 * 2**20 + 2**19
    assert breakdown().device_bytes == 0


def test_reductions() -> None:
    assert breakdown(7).reduction_vs(breakdown(17)) == pytest.approx(0.5)
    assert breakdown(17).reduction_vs(breakdown(7)) == pytest.approx(-1.0)
    assert breakdown().reduction_vs(breakdown(7)) == 1.0
    assert breakdown(7).reduction_vs(breakdown()) == 0.0  # of nothing, nothing can be saved
    for wrong in (None, 3, breakdown(7).host):
        with pytest.raises(TypeError, match="takes a MemoryBreakdown"):
            breakdown(7).reduction_vs(wrong)  # type: ignore[arg-type]


def test_comparisons_ignore_what_is_free() -> None:
    first = breakdown(7)
    other = replace(first, devices=tuple(replace(each, free=0, capacity=1) for each in first.devices))
    assert first == other
    assert first != breakdown(8)


def test_a_breakdown_as_text() -> None:
    head, device, host, plain, pinned = str(breakdown(2**20)).splitlines()
    assert head.split() == ["memory,", "MiB", "model", "context", "compute", "total"]
    assert device.split() == ["GPU0", "1.0", "0.0", "0.0", "1.0"]
    assert host.split() == ["Host", "3.0", "0.0", "0.5", "3.5"]
    # Pinned memory has a line of its own, and so have the rest of the host's buffers then.
    assert plain.split() == ["CPU", "3.0", "0.0", "0.0", "3.0"]
    assert pinned.split() == ["GPU_Host", "0.0", "0.0", "0.5", "0.5"]


def test_the_cache_of_experts_stands_by_itself(tiny_path: Callable[..., Path], device: Device) -> None:
    params = ModelParams(devices=(device,), use_extra_bufts=False).with_cpu_moe_all()
    with Model.load_from_file(tiny_path(n_expert=8, n_layer=3), params) as model:
        with model.new_context(SMALL) as context:
            plain = context.memory_breakdown()
        with model.new_context(SMALL.with_moe_cache_size("1MB")) as context:
            cached = context.memory_breakdown()
    assert [each.moe_cache for each in plain.devices] == [0, 0]
    on_device = cached.devices[0]
    assert 900_000 < on_device.moe_cache <= 1_000_000
    assert on_device.context == plain.devices[0].context
    assert on_device.total == on_device.model + on_device.context + on_device.moe_cache + on_device.compute
    assert "moe cache" in str(cached)
    assert "moe cache" not in str(plain)
