"""Measuring what placements take and give: the offload benchmark."""

from __future__ import annotations

from moebind.bench import nvml
from moebind.bench.agreement import Agreement
from moebind.bench.benchmark import offload
from moebind.bench.measure import TimedRun
from moebind.bench.placements import Placement, default_placements
from moebind.bench.report import OffloadReport, OffloadRow, Samples
from moebind.bench.seen import Resident, Seen, resident

__all__ = [
    "Agreement",
    "OffloadReport",
    "OffloadRow",
    "Placement",
    "Resident",
    "Samples",
    "Seen",
    "TimedRun",
    "default_placements",
    "nvml",
    "offload",
    "resident",
]
