"""Numbers up to which, or from which on, something holds, found in few tries."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["largest", "smallest"]


def largest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The largest number for which a property holds that holds up to some number; None if it does not for ``low``."""
    if low > high:
        return None
    if holds(high):
        return high
    if low == high or not holds(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def smallest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number for which a property holds that holds from some number on; None if not for ``high``."""
    found = largest(-high, -low, lambda number: holds(-number))
    return None if found is None else -found
