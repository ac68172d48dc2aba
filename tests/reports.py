"""A report of the offload benchmark, made up."""

from __future__ import annotations

from dataclasses import replace

from moebind import BufferMemory, DeviceMemory, DeviceType, MemoryBreakdown
from moebind.bench import Agreement, OffloadReport, OffloadRow, Resident, Seen, TimedRun

GIB = 2**30
BUILD = {"moebind": "0.1.0", "llama_cpp": "1", "commit": "abc", "cuda": "out", "system_info": "CPU : AVX = 1 | "}


def breakdown(on_device: int, host: int = GIB) -> MemoryBreakdown:
    device = DeviceMemory("CUDA0", DeviceType.GPU, on_device, 64, 32, (BufferMemory("CUDA0", on_device, 64, 32),))
    return MemoryBreakdown(
        (device, DeviceMemory("Host", DeviceType.CPU, host, 0, 8, (BufferMemory("CPU", host, 0, 8),), 5, 9))
    )


def row(name: str, on_device: int, kl: float) -> OffloadRow:
    runs = tuple(TimedRun(8, 2, 0.1 * at, 0.1 * at + 0.01, (0.2, 0.2 + 0.01 * at, 0.2 + 0.03 * at)) for at in (1, 2, 3))
    seen = Seen(Resident(5, 3, 1, 1, 9), {}, {"CUDA0": on_device + GIB // 4}, {"CUDA0": 2 * on_device})
    return OffloadRow(
        name,
        None,
        "2026-01-01T00:00:00+00:00",
        name.encode().hex(),
        {},
        {"n_ctx": 64},
        1.5,
        runs,
        breakdown(on_device + 4096),
        breakdown(on_device),
        replace(seen, gpu={}, cards={"CUDA0": 0}),
        seen,
        None,
        Agreement(kl, 2 * kl, 0.99, 100, 0.5, 3, 8),
    )


def report() -> OffloadReport:
    rows = (
        row("all | everything", 24 * GIB, 0.0),
        row("experts in host memory", GIB, 1.26e-3),
        OffloadRow("broken", "it\n  broke", "2026-01-01T00:00:00+00:00", "k"),
    )
    settings = {
        "repeats": 3, "warmup": 1, "n_prompt": 8, "n_generate": 2, "prompts": ["a"], "context_params": {"n_ctx": 64},
        "devices": [{"kind": "local", "name": "CUDA0"}, {"kind": "loopback", "memory": None, "n_threads": 2}],
    }  # fmt: skip
    environment = {
        "date": "2026-01-01T00:00:00+00:00", "command": "moebind bench offload m.gguf", "build": BUILD,
        "load_average": [0.5, 0, 0], "files": [{"name": "m.gguf", "size": 3 * GIB, "sha256": "f" * 64}],
        "machine": {
            "processor": "P", "cores": 8, "cores_allowed": 4, "driver": "550.1",
            "devices": [{"name": "CUDA0", "description": "A card", "backend": "CUDA", "type": "GPU"}],
        },
    }  # fmt: skip
    return OffloadReport(rows, rows[0].name, settings, environment)
