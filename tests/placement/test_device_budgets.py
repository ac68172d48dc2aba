"""How much of each device a fit may take; tests/placement/test_fit.py has the errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moebind import fit, plan
from moebind.placement.device_budgets import MARGIN_SHARE, read_budgets


def test_what_is_not_told_is_what_is_free_less_the_margin(tiny_path: Callable[..., Path]) -> None:
    found = plan(tiny_path(), devices=["1GiB", "2GiB"])
    first, second = found.devices[:2]
    assert read_budgets(None, None, found, []) == {
        each.name: each.free - each.free // MARGIN_SHARE for each in (first, second)
    }
    assert read_budgets(None, 2**20, found, []) == {each.name: each.free - 2**20 for each in (first, second)}
    assert read_budgets(None, 2**40, found, []) == {first.name: 0, second.name: 0}
    assert read_budgets("512MiB", None, found, []) == {first.name: 2**29, second.name: 2**29}
    memory = {second.name: "1MiB", "Host": "2MiB"}
    assert read_budgets(memory, 0, found, []) == {
        first.name: first.free,
        second.name: 2**20,
        "Host": 2**21,
    }


def test_a_budget_that_is_a_list(tiny_path: Callable[..., Path]) -> None:
    with pytest.raises(
        TypeError, match=r"memory is \['12GB'\]; it takes one size .*'12GiB', or a mapping such as {'GPU0'"
    ):
        fit(tiny_path(), memory=["12GB"], devices=["24GiB"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"margin is 1\.5; it takes a number of bytes, or a text such as '24GiB'"):
        fit(tiny_path(), margin=1.5, devices=["24GiB"])  # type: ignore[arg-type]
