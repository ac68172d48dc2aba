"""Memory of a process, as the system sees it from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Resident", "Seen", "resident"]

_LINES = {"VmRSS": "total", "RssAnon": "anonymous", "RssFile": "file", "RssShmem": "shared", "VmHWM": "peak"}


@dataclass(frozen=True)
class Resident:
    """Resident memory of a process, from ``/proc/PID/status``.

    Attributes
    ----------
    total : int
        Bytes that are in memory.
    anonymous : int
        Of them, the process's own: read weights, caches, scratch memory.
    file : int
        Of them, pages of mapped files: mapped weights, which the system can drop, and programs.
    shared : int
        Of them, memory shared with others.
    peak : int
        The most that ``total`` was.
    """

    total: int
    anonymous: int
    file: int
    shared: int
    peak: int


@dataclass(frozen=True)
class Seen:
    """Memory as the system and the driver saw it from outside, at one moment.

    Attributes
    ----------
    process : Resident or None
        Of the process that measures.
    workers : Mapping[str, Resident]
        Of the workers behind loopback devices, by the device's name.
    gpu : Mapping[str, int] or None
        Bytes that the process holds on cards (NVIDIA's by NVML, others by the kernel), the driver's own for it
        included; None if neither tells. Empty in containers whose driver does not translate process ids.
    cards : Mapping[str, int] or None
        Bytes in use on each card, by anybody.
    """

    process: Resident | None
    workers: Mapping[str, Resident]
    gpu: Mapping[str, int] | None
    cards: Mapping[str, int] | None


def resident(pid: int) -> Resident | None:
    """Memory of a process; None if it is gone, or of somebody who does not show it."""
    try:
        with open(f"/proc/{int(pid)}/status", encoding="utf-8", errors="replace") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return None
    found = {_LINES[name]: 1024 * int(value.split()[0]) for name, _, value in lines if name in _LINES}
    # A process that has ended, but was not waited for, has no such lines.
    return Resident(**found) if len(found) == len(_LINES) else None


def seen_from_outside(pid: int, devices: Mapping[str, Any]) -> Seen:
    """Memory of a process and of its workers now, beside what it was told of its ``devices``: workers, gpu, cards."""
    found = {name: resident(worker) for name, worker in devices["workers"].items()}
    workers = {name: each for name, each in found.items() if each is not None}
    return Seen(resident(pid), workers, devices["gpu"], devices["cards"])
