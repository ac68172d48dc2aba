"""What pairs of measurements say: a median, the interval in which it lies, and when they say nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moebind.tuning.decision import ERROR, interval, typical

#: Pairs that are measured at least. The interval is then all that was seen; with more, it is narrower.
LEAST = 7
#: The interval may be so wide, as a share of the median; beyond that nothing is concluded.
WIDEST = 0.25

Verdict = Literal["reached", "missed", "not decided"]


@dataclass(frozen=True)
class Judged:
    """A median, and where it lies but for a chance of 5 %; how many pairs it comes from, and what to make of it.

    ``verdict`` is empty where there is no target, or nothing to conclude.
    """

    median: float
    low: float
    high: float
    pairs: int
    verdict: Verdict | Literal[""]

    @property
    def concluded(self) -> bool:
        """Whether the spread leaves anything to conclude."""
        return self.pairs >= LEAST and self.high - self.low <= WIDEST * self.median


def judge(values: Sequence[float], target: float | None = None, at_most: bool = False) -> Judged:
    """Judge what was measured in each round.

    A target is reached, or missed, if the whole interval is on one side of it. In between nothing is decided, however
    near the median is: more rounds, or a quieter machine, would tell.
    """
    low, high = interval(values, ERROR)
    verdict: Verdict | Literal[""] = ""
    if target is not None:
        verdict = "not decided"
        if len(values) >= LEAST and (high <= target if at_most else low >= target):
            verdict = "reached"
        elif len(values) >= LEAST and (low > target if at_most else high < target):
            verdict = "missed"
    return Judged(typical(values), low, high, len(values), verdict)


def either(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The verdict where one target of several is enough: it is missed if all of them are. None if there are none."""
    if "reached" in verdicts:
        return "reached"
    return "not decided" if "not decided" in verdicts else "missed" if verdicts else None
