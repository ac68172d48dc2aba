"""Measuring what placements take and give: the offload benchmark."""

from __future__ import annotations

from moebind.bench import nvml
from moebind.bench.agreement import Agreement
from moebind.bench.measure import TimedRun
from moebind.bench.placements import Placement, default_placements
from moebind.bench.report import OffloadReport
from moebind.bench.resident_memory import Resident, Seen, resident
from moebind.bench.rows import OffloadRow, Samples
from moebind.bench.runs import offload

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
