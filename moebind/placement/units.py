"""Experts' tensors as what a fit moves: all of one matrix (up, gate, down) of one layer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from moebind.files import tensor_patterns
from moebind.params.params import ModelParams
from moebind.placement.plan import Plan

__all__ = ["MATRIX", "Level", "Unit", "levels", "movable_units", "to_host"]

MATRIX = re.compile(r"blk\.\d+\.ffn_(up|down|gate|gate_up)_(?:ch|)exps")


@dataclass(frozen=True)
class Unit:
    """One matrix of one layer's experts, with its biases."""

    layer: int
    matrix: str
    nbytes: int
    device: str

    @property
    def pattern(self) -> str:
        """A tensor override's pattern for it."""
        return rf"blk\.{self.layer}\.ffn_{self.matrix}_(ch|)exps"


@dataclass(frozen=True)
class Level:
    """A choice of units that stay on a device."""

    nbytes: int
    kept: frozenset[Unit]


def movable_units(plan: Plan, params: ModelParams) -> list[Unit]:
    """What could go to host memory: on a device, and not where an override of the user's put it."""
    names = [name for tensors in plan._experts.values() for name in tensors]
    pinned = {name for rule in params.tensor_overrides for name in tensor_patterns.matching(rule.pattern, names)}
    found: dict[tuple[int, str], tuple[int, str]] = {}
    for layer, tensors in plan._experts.items():
        for name, size in tensors.items():
            device, match = plan.places.get(name), MATRIX.match(name)
            if device is not None and match is not None and name not in pinned:
                before = found.get((layer, match[1]), (0, device))
                found[layer, match[1]] = (before[0] + size, device)
    return [Unit(layer, matrix, size, device) for (layer, matrix), (size, device) in found.items()]


def levels(units: Sequence[Unit]) -> list[Level]:
    """Choices for one device, from nothing to everything: whole layers, and matrices of one more.

    What goes is counted from the last layer, or from the first. Where both are of the same size, both are there, since
    they may need different scratch memory; the latter, which llama.cpp's users know, comes last.
    """
    by_layer: dict[int, list[Unit]] = {}
    for unit in units:
        by_layer.setdefault(unit.layer, []).append(unit)
    found: dict[tuple[int, int], Level] = {}
    known: set[frozenset[Unit]] = set()
    for number, order in enumerate((sorted(by_layer), sorted(by_layer, reverse=True))):
        kept: list[Unit] = []
        for layer in reversed(order):
            own = by_layer[layer]
            for count in range(len(own) + 1):
                for part in combinations(own, count):
                    level = Level(sum(unit.nbytes for unit in (*kept, *part)), frozenset((*kept, *part)))
                    if level.kept not in known and (level.nbytes, -number) not in found:
                        known.add(level.kept)
                        found[level.nbytes, -number] = level
            kept += own
    return [found[key] for key in sorted(found)]


def to_host(params: ModelParams, units: Collection[Unit], kept: Collection[Unit]) -> ModelParams:
    """Parameters that keep all units but ``kept`` in host memory, in as few rules as there can be."""
    moved = set(units) - set(kept)
    if not moved:
        return params
    if not kept:
        return params.with_cpu_moe_all()
    by_layer: dict[int, set[str]] = {}
    for unit in moved:
        by_layer.setdefault(unit.layer, set()).add(unit.matrix)
    stays = {unit.layer for unit in kept}
    whole = sorted(layer for layer in by_layer if layer not in stays)
    parts: Mapping[int, set[str]] = {layer: by_layer[layer] for layer in by_layer if layer in stays}
    if whole and min(stays, default=whole[-1] + 1) > whole[-1]:
        params = params.with_n_cpu_moe(whole[-1] + 1)
    elif whole:
        params = params.with_cpu_override(rf"blk\.({_joined(whole)}){tensor_patterns.experts_pattern()}")
    for layer, matrices in sorted(parts.items()):
        params = params.with_cpu_override(rf"blk\.{layer}\.ffn_({_joined(sorted(matrices))})_(ch|)exps")
    return params


def _joined(choices: Iterable[object]) -> str:
    return "|".join(map(str, choices))
