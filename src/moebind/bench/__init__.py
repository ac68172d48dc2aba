"""Measuring what placements take and give: the offload benchmark, and speeds of one of them."""

from __future__ import annotations

from moebind.bench import drm, nvml
from moebind.bench.agreement import Agreement
from moebind.bench.measure import BatchRun, TimedRun
from moebind.bench.placements import Placement, default_placements
from moebind.bench.report import OffloadReport
from moebind.bench.resident_memory import Resident, Seen, resident
from moebind.bench.rows import OffloadRow, Samples
from moebind.bench.runs import offload
from moebind.bench.speed import SpeedReport, SpeedRow, batch, decode, prompt

__all__ = [
    "Agreement",
    "BatchRun",
    "OffloadReport",
    "OffloadRow",
    "Placement",
    "Resident",
    "Samples",
    "Seen",
    "SpeedReport",
    "SpeedRow",
    "TimedRun",
    "batch",
    "decode",
    "default_placements",
    "drm",
    "nvml",
    "offload",
    "prompt",
    "resident",
]
