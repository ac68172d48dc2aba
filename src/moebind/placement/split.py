"""How the layers are spread over several devices, so that each has room for its share of the experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate, pairwise

from moebind.params.params import ModelParams
from moebind.placement.draft_memory import draft_part
from moebind.placement.header import Header
from moebind.placement.movable import EXPERT_MATRIX, pinned
from moebind.placement.plan import Plan

__all__ = ["spread"]

#: With so many ways to spread the layers, all are looked at; with more, those around a start in proportion.
_ALL_TRIED_MAX = 200
Worth = tuple[int, int, float]


def spread(
    header: Header, plan: Plan, params: ModelParams, budgets: Mapping[str, int], count: int = 1
) -> list[ModelParams]:
    """Parameters with a ``tensor_split`` that lets the devices keep the most experts; the ``count`` best, best first.

    What a layer weighs is in the header; its cache, and the scratch memory of each device, are taken from a plan.
    """
    n_layer = plan.n_layer + plan.n_layer_nextn
    dense = [0] * n_layer
    matrices: list[dict[str, int]] = [{} for _ in range(n_layer)]
    output = 0
    placed = pinned(header.experts, params)
    for info in header.tensors.values():
        layer = info.layer
        if info.name not in plan.places or (info.name in placed and plan.places[info.name] is None):
            continue  # not loaded, or kept in host memory by the user
        if layer is None:
            output += info.nbytes if info.name.startswith("output") else 0
        elif layer < n_layer:
            expert, own = EXPERT_MATRIX.match(info.name), matrices[layer]
            if expert is None:
                dense[layer] += info.nbytes
            else:
                own[expert["kind"]] = own.get(expert["kind"], 0) + info.nbytes
    if "output.weight" not in header.tensors and "token_embd.weight" in header.tensors:
        output += header.tensors["token_embd.weight"].nbytes
    first = max(n_layer + 1 - params.n_gpu_layers, 0) if params.n_gpu_layers >= 0 else 0
    devices = plan._own_devices
    drafts = {device.name: draft_part(device, "model") + draft_part(device, "context") for device in devices}
    caches = sum(device.context - draft_part(device, "context") for device in devices)
    cache = caches // max(plan.n_layer - first, 1)
    dense = [size + (cache if layer < plan.n_layer else 0) for layer, size in enumerate(dense)]
    rooms = [budgets.get(device.name, device.free) - device.compute - drafts[device.name] for device in devices]
    rooms[-1] -= output
    heavy = [tuple(layer.values()) for layer in matrices[first:]]
    ranked = _ranked(rooms, [0, *accumulate(dense[first:])], heavy)
    splits: list[ModelParams] = []
    for borders in ranked[:count]:
        counts = [end - start for start, end in zip([0, *borders], [*borders, len(heavy)], strict=True)]
        counts[-1] += 1  # the output counts as a layer
        splits.append(params.with_tensor_split([float(each) for each in counts]))
    return splits


def _ranked(rooms: list[int], dense: list[int], experts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Choices of the layers at which each device but the last ends: the best choices first."""
    n_layer = len(experts)

    @cache
    def kept(at: int, start: int, end: int) -> int:
        return _most_kept(experts[start:end], rooms[at] - dense[end] + dense[start])

    @cache
    def worth(borders: tuple[int, ...]) -> Worth:
        ends = [0, *borders, n_layer]
        lack, keeps, fullest = 0, 0, 0.0
        for at, (start, end) in enumerate(pairwise(ends)):
            needed = dense[end] - dense[start]
            lack += max(needed - rooms[at], 0)
            keeps += kept(at, start, end)
            fullest = max(fullest, (needed + sum(map(sum, experts[start:end]))) / max(rooms[at], 1))
        return -lack, keeps, -fullest

    total = max(sum(max(room, 0) for room in rooms), 1)
    start = tuple(round(n_layer * part / total) for part in accumulate(max(room, 0) for room in rooms))[:-1]
    if len(rooms) == 2 and n_layer <= _ALL_TRIED_MAX:
        found: set[tuple[int, ...]] = {(border,) for border in range(n_layer + 1)}
    else:
        found = _climb(start, n_layer, worth)
    return sorted(found, key=worth, reverse=True)


def _climb(borders: tuple[int, ...], n_layer: int, worth: Callable[[tuple[int, ...]], Worth]) -> set[tuple[int, ...]]:
    """Move one border after the other while it helps; all choices that were looked at."""
    seen = {borders}
    improved = True
    while improved:
        improved = False
        for at in range(len(borders)):
            for step in (1, -1, 2, -2, 4, -4, 8, -8):
                moved = (*borders[:at], borders[at] + step, *borders[at + 1 :])
                if list(moved) == sorted(moved) and moved[0] >= 0 and moved[-1] <= n_layer:
                    seen.add(moved)
                    if worth(moved) > worth(borders):
                        borders, improved = moved, True
    return seen


def _most_kept(layers: Sequence[tuple[int, ...]], room: int) -> int:
    """Bytes of experts that fit: whole layers from one end, and matrices of one more."""
    most = 0
    for order in (layers, layers[::-1]):
        kept = 0
        for layer in order:
            if kept + sum(layer) > room:
                sums = {0}
                for size in layer:
                    sums |= {size + each for each in sums}
                kept += max((each for each in sums if kept + each <= room), default=0)
                break
            kept += sum(layer)
        most = max(most, kept)
    return most
