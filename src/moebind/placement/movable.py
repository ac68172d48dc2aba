"""Matrices of experts, which a fit moves between devices and host memory one by one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from moebind.files import tensor_patterns
from moebind.params.params import ModelParams
from moebind.placement.plan import Plan

__all__ = ["EXPERT_MATRIX", "Level", "ExpertMatrix", "levels", "movable_matrices", "pinned", "to_host"]

#: Tensors of experts, with the kind of matrix, which is in the name of its biases too.
EXPERT_MATRIX = re.compile(rf"(?=blk\.\d+{tensor_patterns.experts_pattern()})blk\.\d+\.(?P<kind>\w+?)_(ch)?exps")


@dataclass(frozen=True)
class ExpertMatrix:
    """One matrix of one layer's experts (``kind``: such as ffn_up or attn_v), with its biases."""

    layer: int
    kind: str
    nbytes: int
    device: str

    @property
    def pattern(self) -> str:
        """A tensor override's pattern for it."""
        return rf"blk\.{self.layer}\.{self.kind}_(ch|)exps"


@dataclass(frozen=True)
class Level:
    """A choice of matrices that stay on a device, and their bytes."""

    nbytes: int
    kept: frozenset[ExpertMatrix]


def movable_matrices(plan: Plan, params: ModelParams) -> list[ExpertMatrix]:
    """The matrices that could go to host memory: those on a device, unless an override of the user's put them there."""
    placed = pinned(plan._experts, params)
    found: dict[tuple[int, str], tuple[int, str]] = {}
    for layer, tensors in plan._experts.items():
        for name, size in tensors.items():
            device, match = plan.places.get(name), EXPERT_MATRIX.match(name)
            if device is not None and match is not None and name not in placed:
                before = found.get((layer, match["kind"]), (0, device))
                found[layer, match["kind"]] = (before[0] + size, device)
    return [ExpertMatrix(layer, kind, size, device) for (layer, kind), (size, device) in found.items()]


def pinned(experts: Mapping[int, Mapping[str, int]], params: ModelParams) -> set[str]:
    """Names of the experts' tensors that overrides have placed."""
    names = [name for tensors in experts.values() for name in tensors]
    return {name for rule in params.tensor_overrides for name in tensor_patterns.matching(rule.pattern, names)}


def levels(matrices: Sequence[ExpertMatrix]) -> list[Level]:
    """Choices for one device, from nothing to everything: whole layers, and matrices of one more.

    What goes is counted from the last layer, or from the first. Where both are of the same size, both are there, since
    they may need different scratch memory; the latter, which llama.cpp's users know, comes last.
    """
    by_layer: dict[int, list[ExpertMatrix]] = {}
    for matrix in matrices:
        by_layer.setdefault(matrix.layer, []).append(matrix)
    found: dict[tuple[int, int], Level] = {}
    known: set[frozenset[ExpertMatrix]] = set()
    for number, order in enumerate((sorted(by_layer), sorted(by_layer, reverse=True))):
        kept: list[ExpertMatrix] = []
        for layer in reversed(order):
            own = by_layer[layer]
            for count in range(len(own) + 1):
                for part in combinations(own, count):
                    level = Level(sum(matrix.nbytes for matrix in (*kept, *part)), frozenset((*kept, *part)))
                    if level.kept not in known and (level.nbytes, -number) not in found:
                        known.add(level.kept)
                        found[level.nbytes, -number] = level
            kept += own
    return [found[key] for key in sorted(found)]


def to_host(params: ModelParams, matrices: Collection[ExpertMatrix], kept: Collection[ExpertMatrix]) -> ModelParams:
    """Parameters that keep all matrices but ``kept`` in host memory, in as few rules as there can be."""
    moved = set(matrices) - set(kept)
    if not moved:
        return params
    if not kept:
        return params.with_cpu_moe_all()
    by_layer: dict[int, set[str]] = {}
    for matrix in moved:
        by_layer.setdefault(matrix.layer, set()).add(matrix.kind)
    stays = {matrix.layer for matrix in kept}
    whole = sorted(layer for layer in by_layer if layer not in stays)
    parts: Mapping[int, set[str]] = {layer: by_layer[layer] for layer in by_layer if layer in stays}
    if whole and min(stays, default=whole[-1] + 1) > whole[-1]:
        params = params.with_n_cpu_moe(whole[-1] + 1)
    elif whole:
        params = params.with_cpu_override(rf"blk\.({_joined(whole)}){tensor_patterns.experts_pattern()}")
    for layer, kinds in sorted(parts.items()):
        params = params.with_cpu_override(rf"blk\.{layer}\.({_joined(sorted(kinds))})_(ch|)exps")
    return params


def _joined(choices: Iterable[object]) -> str:
    return "|".join(map(str, choices))
