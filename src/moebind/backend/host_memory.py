"""The memory of this machine, and what of it this process may use."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

__all__ = ["HostMemory", "host_memory"]

PROC = "/proc"
CGROUPS = "/sys/fs/cgroup"
#: cgroup v1 says "no limit" with a number near 2**63.
NO_LIMIT = 2**60


@dataclass(frozen=True)
class HostMemory:
    """Bytes: all that there is for this process, and what of it is free. ``limit``: the control group that says so.

    ``swap`` is what it may have besides, on a disk.
    """

    capacity: int
    free: int
    limit: str | None = None
    swap: int = 0


def host_memory() -> HostMemory:
    """The memory that the system and the control groups above this process leave it.

    Pages of files that can be read again count as free, in the system's ``MemAvailable`` as in a group's statistics.
    """
    meminfo = _table(f"{PROC}/meminfo")
    total = 1024 * meminfo.get("MemTotal", 0) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = HostMemory(total, 1024 * meminfo.get("MemAvailable", 0) if "MemAvailable" in meminfo else total)
    swap, most = 1024 * meminfo.get("SwapTotal", 0), NO_LIMIT
    for folder, limit_file, used_file, reclaimable in _groups():
        # Version 2 limits swap by itself, version 1 memory and swap together, where that is counted.
        swap = min(swap, _limit(f"{folder}/memory.swap.max"))
        most = min(most, _limit(f"{folder}/memory.memsw.limit_in_bytes"))
        limit = _number(f"{folder}/{limit_file}")
        if limit is None or limit >= NO_LIMIT:
            continue
        statistics = _table(f"{folder}/memory.stat")
        used = (_number(f"{folder}/{used_file}") or 0) - sum(statistics.get(key, 0) for key in reclaimable)
        free = max(limit - max(used, 0), 0)
        if limit < found.capacity or free < found.free:
            found = HostMemory(min(limit, found.capacity), min(free, found.free), f"the control group {folder}")
    return replace(found, swap=max(min(swap, most - found.capacity), 0))


def _groups() -> list[tuple[str, str, str, tuple[str, ...]]]:
    """The memory groups that this process is in, from its own to the root: a limit of each one counts."""
    groups: list[tuple[str, str, str, tuple[str, ...]]] = []
    for line in _lines(f"{PROC}/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        mount, limit, used = CGROUPS, "memory.max", "memory.current"
        reclaimable: tuple[str, ...] = ("inactive_file", "active_file", "slab_reclaimable")
        if "memory" in controllers.split(","):
            mount, limit, used = f"{CGROUPS}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            reclaimable = ("total_inactive_file", "total_active_file")
        elif number != "0" or controllers:
            continue
        # Inside a container, the path is the host's while the mount shows the container's own group as its root.
        parts = [part for part in path.split("/") if part and part != ".."]
        folders = ["/".join([mount, *parts[:depth]]) for depth in range(len(parts), -1, -1)]
        groups += [(folder, limit, used, reclaimable) for folder in folders if os.path.isdir(folder)]
    return groups


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _number(path: str) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdecimal() else None


def _limit(path: str) -> int:
    """A limit, ``NO_LIMIT`` where there is none."""
    limit = _number(path)
    return NO_LIMIT if limit is None else limit


def _table(path: str) -> dict[str, int]:
    """Names and numbers, one pair a line, in the forms of ``meminfo`` and of ``memory.stat``."""
    pairs = [line.replace(":", " ").split()[:2] for line in _lines(path)]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
