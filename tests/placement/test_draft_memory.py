"""The memory of what drafts, among that of devices."""

from __future__ import annotations

from dataclasses import replace

from moebind import BufferMemory, DeviceMemory, DeviceType, Draft, SpeculativeType
from moebind.placement.draft_memory import DraftMemory, draft_part


def memory(name: str, *sizes: int) -> DeviceMemory:
    kind = DeviceType.CPU if name == "Host" else DeviceType.GPU
    return DeviceMemory(name, kind, *sizes, (BufferMemory(name, *sizes),), 100, 200)


MODEL = (memory("GPU0", 1, 2, 3), memory("Host", 4, 5, 6))


def drafts(*devices: DeviceMemory) -> DraftMemory:
    return DraftMemory(Draft("d.gguf"), SpeculativeType.DRAFT_SIMPLE, devices, 0, 0)


def test_it_is_added_to_the_models() -> None:
    gpu, host = drafts(memory("GPU0", 10, 20, 30), memory("Host", 0, 0, 0)).added_to(MODEL)
    assert (gpu.model, gpu.context, gpu.compute) == (11, 22, 33)
    assert [buffer.name for buffer in gpu.buffers] == ["GPU0", "draft"]
    assert [draft_part(gpu, part) for part in ("model", "context", "compute", "total")] == [10, 20, 30, 60]
    assert host == MODEL[1]
    assert draft_part(host, "total") == 0


def test_a_device_of_its_own_comes_before_the_host() -> None:
    found = drafts(memory("GPU1", 10, 20, 30), memory("Host", 1, 1, 1)).added_to(MODEL)
    assert [device.name for device in found] == ["GPU0", "GPU1", "Host"]
    assert found[0] == MODEL[0]
    assert found[1].buffers == (BufferMemory("draft", 10, 20, 30),)
    assert found[2].total == 18


def test_a_cache_of_experts_counts() -> None:
    own = DeviceMemory("GPU0", DeviceType.GPU, 1, 1, 1, (), moe_cache=7)
    alone = replace(own, name="GPU1")
    first, second, _ = drafts(own, alone).added_to(MODEL)
    assert (first.total, second.total) == (6 + 10, 10)
    assert [draft_part(each, "moe_cache") for each in (first, second)] == [7, 7]


def test_it_says_what_it_takes() -> None:
    made = drafts(memory("GPU0", 2**20, 0, 0), memory("Host", 0, 0, 0))
    assert made.explained() == "The draft takes 1.0 MiB of GPU0, which the model does not get."
    assert made.to_dict()["kind"] == "DRAFT_SIMPLE"
