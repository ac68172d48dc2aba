"""Layers, spread over several devices."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, combinations, pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import moebind
from moebind import ContextParams, ModelParams
from moebind.placement.header import read_header
from moebind.placement.split import _most_kept, _ranked, spread

MakeShape = Callable[..., Path]
GIB = 2**30
CONTEXT = ContextParams(n_ctx=4096)


def test_two_devices_are_balanced(shape_path: MakeShape) -> None:
    path = shape_path("qwen3-30b-a3b-q4_k_m", 24)
    fit = moebind.fit(path, memory={"GPU0": "3GiB", "GPU1": "2GiB"}, context_params=CONTEXT, devices=["24GiB", "24GiB"])
    held = [device.total for device in fit.plan.devices[:-1]]
    assert 0.93 * 3 * GIB < held[0] <= 3 * GIB
    assert 0.90 * 2 * GIB < held[1] <= 2 * GIB
    assert fit.model_params.tensor_split is not None
    assert len(fit.model_params.tensor_split) == 2
    alike = moebind.fit(path, context_params=CONTEXT, devices=["24GiB", "24GiB"])
    assert alike.model_params == ModelParams()


LAYERS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=5)


@given(LAYERS, st.integers(-10, 250))
def test_the_most_experts_that_fit(layers: list[tuple[int, ...]], room: int) -> None:
    """Against all choices of whole layers from one end, and matrices of one more."""
    fitting = [0]
    for order in (layers, layers[::-1]):
        for whole in range(len(order) + 1):
            base = sum(map(sum, order[:whole]))
            parts = order[whole] if whole < len(order) else ()
            sizes = [base + sum(part) for count in range(len(parts) + 1) for part in combinations(parts, count)]
            fitting += [size for size in sizes if size <= room]
    assert _most_kept(layers, room) == max(fitting)


@given(
    st.lists(st.integers(0, 60), min_size=2, max_size=3),
    st.lists(st.tuples(st.integers(0, 5), st.tuples(st.integers(1, 9), st.integers(1, 9))), min_size=1, max_size=6),
)
def test_the_best_borders_come_first(rooms: list[int], layers: list[tuple[int, tuple[int, ...]]]) -> None:
    dense = [0, *accumulate(size for size, _ in layers)]
    experts = [own for _, own in layers]

    def worth(borders: tuple[int, ...]) -> tuple[int, int]:
        parts = list(zip(rooms, pairwise([0, *borders, len(layers)]), strict=True))
        lack = sum(max(dense[end] - dense[start] - room, 0) for room, (start, end) in parts)
        kept = sum(_most_kept(experts[start:end], room - dense[end] + dense[start]) for room, (start, end) in parts)
        return -lack, kept

    found = _ranked(rooms, dense, experts)
    assert len(set(found)) == len(found)
    worths = [worth(borders) for borders in found]
    assert worths == sorted(worths, reverse=True)
    for borders in found:
        assert list(borders) == sorted(borders)
        assert 0 <= borders[0] <= borders[-1] <= len(layers)
    if len(rooms) == 2:  # all were looked at
        assert len(found) == len(layers) + 1


def test_borders_are_layers_of_devices(tiny_path: Callable[..., Path]) -> None:
    path = str(tiny_path(n_expert=4, n_layer=4))
    plan = moebind.plan(path, ModelParams(), CONTEXT, devices=["1GiB", "1GiB"])
    budget = plan.device_bytes
    best, second = spread(read_header(path), plan, ModelParams(), {"GPU0": budget, "GPU1": budget}, 2)
    assert best != second
    for params in (best, second):
        assert params.tensor_split is not None
        assert sum(params.tensor_split) == 4 + 1  # the output counts as a layer
    [alone] = spread(read_header(path), plan, ModelParams(), {"GPU0": budget, "GPU1": 0})
    assert alone.tensor_split == (4.0, 1.0)
