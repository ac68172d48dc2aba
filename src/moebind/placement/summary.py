"""A placement, or why there is none, in a few words."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

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


def experts_on_host(places: Mapping[str, str | None], experts: Mapping[int, Collection[str]]) -> str:
    """Which experts are in host memory: those of whole layers, then single matrices of others.

    Parameters
    ----------
    places
        The device of each tensor; None is host memory.
    experts
        The names of experts' tensors, by layer. Layers without any do not interrupt a range.
    """
    held = {
        layer: [name for name in names if name in places and places[name] is None] for layer, names in experts.items()
    }
    runs: list[list[int]] = []
    parts, before = [], False
    for layer in sorted(experts):
        whole = bool(held[layer]) and len(held[layer]) == sum(name in places for name in experts[layer])
        if whole and before:
            runs[-1].append(layer)
        elif whole:
            runs.append([layer])
        elif held[layer]:
            kinds = dict.fromkeys(name.split(".")[2] for name in held[layer])
            parts.append(f"{' and '.join(kinds)} of layer {layer}")
        before = whole
    told = [f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    several = len(runs) > 1 or any(len(run) > 1 for run in runs)
    whole_layers = f"of layer{'s' if several else ''} {_joined(told)}" if told else ""
    return ", and ".join(filter(None, [whole_layers, _joined(parts)]))


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
