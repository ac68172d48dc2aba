"""Routing as characters."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import SMALL
from moebind import Batch, Model, RoutingRecorder
from moebind.placement.heat_map import SHADES, WIDTH_MIN, heat_map

PROMPT = [1, 7, 8, 9, 10, 61]


def test_characters_are_multiples_of_an_even_share() -> None:
    # Of 80 choices among 8 experts, an even share is 10.
    shares = [0, 4, 5, 10, 15, 20, 25, 1]
    assert sum(shares) == 80
    head, line, legend = heat_map(np.array([shares, [0] * 8]), np.array([40, 0]), 100).splitlines()
    assert line == "    0      40  | .:-=+*.|"
    assert "one expert; 8 in all" in head
    assert legend.startswith("times an even share, from: '.' 0, ':' 0.5, '-' 1, ")
    assert all(f"'{each}' " in legend for each in SHADES)


def test_the_most_is_the_last() -> None:
    _, line, _ = heat_map(np.array([[0, 0, 0, 0, 0, 0, 0, 80]]), np.array([40]), 100).splitlines()
    assert line.endswith(f"|       {SHADES[-1]}|")
    _, line, _ = heat_map(np.array([[10, 10, 10, 10]]), np.array([40]), 100).splitlines()
    assert line.endswith("|----|")


@pytest.mark.parametrize("width", [WIDTH_MIN, 60, 100, 300])
@pytest.mark.parametrize("n_expert", [1, 8, 25, 128, 257])
def test_no_line_is_wider(n_expert: int, width: int) -> None:
    counts = np.zeros((3, n_expert), np.int64)
    counts[:, -1] = 7
    lines = heat_map(counts, np.array([7, 0, 7]), width).splitlines()
    rows = lines[1:-1]
    assert [row.split()[0] for row in rows] == ["0", "2"]
    assert max(map(len, rows)) <= width
    # The busiest of several stands for them.
    assert all(row.rstrip("|")[-1] != " " for row in rows)


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="nothing was counted yet"):
        heat_map(np.zeros((0, 0), np.int64), np.zeros(0, np.int64), 100)


def test_a_heat_map_and_plain_values(moe: Model) -> None:
    recorder = RoutingRecorder()
    with pytest.raises(ValueError, match="nothing was counted yet"):
        recorder.heat_map()
    assert recorder.to_dict()["counts"] == []
    with moe.new_context(SMALL.with_eval_callback(recorder)) as context:
        context.decode(Batch.get_one(PROMPT))
    lines = recorder.heat_map(40).splitlines()
    assert len(lines) == moe.n_layer + 2
    assert all(line.endswith("|") and len(line) <= 40 for line in lines[1:-1])
    told = recorder.to_dict()
    assert told["counts"] == recorder.counts.tolist()
    assert told["entropy"] == recorder.entropy().tolist()
    assert told["n_tokens"] == [len(PROMPT), 1]  # of the last layer, one has an output
    with pytest.raises(ValueError, match="width is 39"):
        recorder.heat_map(39)
