"""How the layers are spread over several devices, so that each has room for its share of the experts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate

from moebind.params import ModelParams
from moebind.placement.header import Header
from moebind.placement.plan import Plan

__all__ = ["balanced"]

_LAYER = re.compile(r"blk\.(\d+)\.")


def balanced(header: Header, plan: Plan, params: ModelParams, budgets: Mapping[str, int]) -> ModelParams:
    """Parameters with a ``tensor_split`` that gives each device the layers whose experts it can keep the most of.

    What a layer weighs is in the header; its cache, and the scratch memory of a device, are taken from a plan.
    """
    n_layer = plan.n_layer
    dense, experts = [0] * n_layer, [0] * n_layer
    output = 0
    for info in header.tensors.values():
        match = _LAYER.match(info.name)
        if match is None:
            output += info.nbytes if info.name.startswith("output") else 0
        elif int(match[1]) < n_layer:
            where = experts if info.name in plan._experts.get(int(match[1]), {}) else dense
            where[int(match[1])] += info.nbytes
    first = max(n_layer + 1 - params.n_gpu_layers, 0) if params.n_gpu_layers >= 0 else 0
    devices = plan.devices[:-1]
    cache = sum(device.context for device in devices) // max(n_layer - first, 1)
    if "output.weight" not in header.tensors:
        output += header.tensors["token_embd.weight"].nbytes if "token_embd.weight" in header.tensors else 0
    scratch = max(device.compute for device in devices)
    rooms = [budgets.get(device.name, device.free) - scratch for device in devices]
    rooms[-1] -= output
    sums_dense = [0, *accumulate(size + cache for size in dense[first:])]
    sums_experts = [0, *accumulate(experts[first:])]
    counts = _counts(rooms, sums_dense, sums_experts)
    counts[-1] += 1  # the output counts as a layer
    return params.with_tensor_split([float(count) for count in counts])


def _counts(rooms: list[int], dense: list[int], experts: list[int]) -> list[int]:
    """How many layers each device takes: begin in proportion, then move the borders while it helps."""
    n_layer, total = len(dense) - 1, max(sum(max(room, 0) for room in rooms), 1)
    borders = [round(n_layer * part / total) for part in accumulate(max(room, 0) for room in rooms)][:-1]

    def worth(borders: list[int]) -> tuple[int, int, float]:
        ends = [0, *borders, n_layer]
        lack = kept = 0
        fullest = 0.0
        for room, start, end in zip(rooms, ends, ends[1:], strict=False):
            left = room - (dense[end] - dense[start])
            lack += max(-left, 0)
            kept += min(max(left, 0), experts[end] - experts[start])
            fullest = max(fullest, (dense[end] - dense[start] + experts[end] - experts[start]) / max(room, 1))
        return -lack, kept, -fullest

    best = worth(borders)
    improved = True
    while improved:
        improved = False
        for at in range(len(borders)):
            for step in (1, -1, 2, -2, 4, -4, 8, -8):
                moved = [*borders[:at], borders[at] + step, *borders[at + 1 :]]
                if moved == sorted(moved) and moved[0] >= 0 and moved[-1] <= n_layer and worth(moved) > best:
                    borders, best, improved = moved, worth(moved), True
    return [end - start for start, end in zip([0, *borders], [*borders, n_layer], strict=True)]
