"""A placement, or why there is none, in a few words."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from moebind._core.sizes import show_size

__all__ = ["does_not_fit", "summary"]

_LAYER = re.compile(r"blk\.(\d+)\.")


def summary(places: Mapping[str, str | None], experts: Collection[str]) -> str:
    """Where a model's tensors are, in a few words.

    Parameters
    ----------
    places
        The device of each tensor; None is host memory.
    experts
        The names of experts' tensors.
    """
    devices = list(dict.fromkeys(place for place in places.values() if place is not None))
    if not devices:
        return "all in host memory"
    layers: dict[str, list[str]] = {}
    for name in places:
        if match := _LAYER.match(name):
            layers.setdefault(match[1], []).append(name)
    whole = parted = others = 0
    for names in layers.values():
        on_host = [name for name in names if places[name] is None]
        if len(on_host) == len(names):
            whole += 1
        elif any(name in experts for name in on_host):
            parted += 1
        elif on_host:
            others += 1
    parts = []
    if whole:
        parts.append(f"{whole} of {_count(len(layers), 'layer')}")
    if parted:
        every = parted == len(layers) and parted > 1
        parts.append(f"experts of {'all ' if every else ''}{_count(parted, 'other layer' if whole else 'layer')}")
    if others:
        parts.append(f"parts of {_count(others, 'layer')}")
    where = " and ".join(devices)
    return f"{' and '.join(parts)} in host memory" if parts else f"all on {where}"


def does_not_fit(missing: Mapping[str, int]) -> str:
    """The bytes that devices, and the host, lack, in a few words."""
    lacks = ", ".join(f"{name} lacks {show_size(size)}" for name, size in missing.items())
    return f"does not fit: {lacks}" if lacks else "does not fit"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
