"""Budgets of memory on a command line."""

from __future__ import annotations

import pytest

from moebind.cli.budgets import budgets


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, None),
        ([], None),
        (["8GiB"], "8GiB"),
        (["CUDA0=8GiB"], {"CUDA0": "8GiB"}),
        (["CUDA0=8GiB", "Host=1GiB"], {"CUDA0": "8GiB", "Host": "1GiB"}),
    ],
)
def test_one_or_one_each(given: list[str] | None, found: object) -> None:
    assert budgets(given) == found


@pytest.mark.parametrize("given", [["8GiB", "CUDA0=1GiB"], ["CUDA0="], ["=8GiB"]])
def test_what_is_neither(given: list[str]) -> None:
    with pytest.raises(ValueError, match="it takes DEVICE=SIZE"):
        budgets(given)
