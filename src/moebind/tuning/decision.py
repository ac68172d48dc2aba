"""Whether one thing is faster than another: the sign test on pairs of measurements.

Both are measured in each round, one right after the other, so that what slows the machine down for a while slows both
down. If the two were equally fast, either would be the faster one in half of the rounds, whatever the noise is like;
the chance of so many rounds for one of them is then that of so many heads of a coin. The test asks nothing of the
noise, and a measurement that something disturbed costs it one round, however much it was disturbed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

__all__ = ["ERROR", "Interval", "can_still_win", "interval", "is_better", "rounds_needed", "typical"]

#: The chance that a search keeps anything that is no faster, all its decisions together.
ERROR = 0.05

Interval = tuple[float, float]


def rounds_needed(level: float) -> int:
    """How many rounds a decision takes at least: as few as can reach the level."""
    return math.ceil(-math.log2(level))


def is_better(differences: Sequence[float], level: float) -> bool:
    """Whether the differences are typically above 0, but for a chance of at most ``level``."""
    against = sum(each <= 0 for each in differences)
    return _at_most(len(differences))[against] <= level


def can_still_win(differences: Sequence[float], rounds: int, level: float) -> bool:
    """Whether the test could still succeed, if all rounds that are left went well."""
    return is_better([*differences, *[1.0] * (rounds - len(differences))], level)


def typical(differences: Sequence[float]) -> float:
    """The median."""
    values = sorted(differences)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def interval(differences: Sequence[float], level: float = ERROR) -> Interval:
    """Where the median lies, but for a chance of ``level``: the interval that belongs to the test.

    With fewer rounds than that takes, from the least to the most that was seen.
    """
    values = sorted(differences)
    outside = sum(chance <= level / 2 for chance in _at_most(len(values)))
    return values[max(outside - 1, 0)], values[-max(outside, 1)]


@cache
def _at_most(count: int) -> tuple[float, ...]:
    """The chance of at most 0, 1, 2, ... heads of so many coins."""
    return tuple(ways / 2**count for ways in accumulate(math.comb(count, heads) for heads in range(count + 1)))
