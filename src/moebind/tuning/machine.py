"""The machine that is tuned for: its processors, and what tells it and the build from others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moebind.bench import environment
from moebind.diagnosis.facts import core_quota

__all__ = ["Processors", "conditions", "differences", "processors"]

SYSTEM = "/sys/devices/system"


@dataclass(frozen=True)
class Processors:
    """Processors that this process may use, by their numbers.

    Attributes
    ----------
    cores : tuple[tuple[int, ...], ...]
        For each core those that share it; the first of each is a core of its own.
    nodes : tuple[tuple[int, ...], ...]
        For each memory node (NUMA) those that are near it.
    quota : float or None
        How many of them the control group lets the process use at once.
    """

    cores: tuple[tuple[int, ...], ...]
    nodes: tuple[tuple[int, ...], ...]
    quota: float | None = None

    @property
    def all(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(sorted(each for core in self.cores for each in core))

    @property
    def one_each(self) -> tuple[int, ...]:
        """One of each core."""
        return tuple(sorted(core[0] for core in self.cores))

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "cores": [list(core) for core in self.cores],
            "nodes": [list(n) for n in self.nodes],
            "quota": self.quota,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Processors:
        """What :meth:`to_dict` gave."""
        cores, nodes = (tuple(map(tuple, fields[name])) for name in ("cores", "nodes"))
        return cls(cores, nodes, fields["quota"])


def processors() -> Processors:
    """Look. What the system does not tell is taken for cores of their own, on one node."""
    allowed = sorted(os.sched_getaffinity(0))
    cores = _groups(allowed, [_list(f"{SYSTEM}/cpu/cpu{each}/topology/thread_siblings_list") for each in allowed])
    folder = f"{SYSTEM}/node"
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    nodes = [_list(f"{folder}/{name}/cpulist") for name in names if name.startswith("node") and name[4:].isdecimal()]
    return Processors(cores, _groups(allowed, nodes), core_quota())


def _groups(allowed: Sequence[int], groups: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The groups without what is not allowed, each once; what is in none is one by itself."""
    found = {tuple(each for each in sorted(group) if each in allowed): None for group in groups}
    found.pop((), None)
    known = {each for group in found for each in group}
    return tuple(sorted([*found, *((each,) for each in allowed if each not in known)]))


def _list(path: str) -> list[int]:
    """The numbers of a text such as 0-3,8."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read().strip()
    except OSError:
        return []
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def conditions(devices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The machine and the build, as far as what is fastest depends on them.

    ``devices`` are those that were asked for, as :func:`moebind.bench.settings.checked_devices` has them. No device is
    asked anything: that would take memory on it.
    """
    build = environment.build()
    return {
        "processor": environment.processor(),
        "processors": len(os.sched_getaffinity(0)),
        "devices": [_described(each) for each in devices],
        "cards": environment.installed(),
        "build": {name: build[name] for name in ("moebind", "llama_cpp", "commit", "cuda", "vulkan")},
    }


def _described(device: Mapping[str, Any]) -> str:
    return str(
        device.get("name") or device.get("endpoint") or f"a worker process of {device.get('memory') or 'any size'}"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two conditions differ, in words; devices that were asked for do not count."""
    words = {
        "processor": "processor",
        "processors": "number of processors",
        "cards": "cards",
    }
    found = [word for name, word in words.items() if before.get(name) != now.get(name)]
    builds = (before.get("build") or {}, now.get("build") or {})
    return found + ["build"] * (builds[0] != builds[1])
