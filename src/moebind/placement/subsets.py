"""The choice of the devices that take part: one with little room can cost the others more than it brings."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

__all__ = ["best_subset"]

T = TypeVar("T")
R = TypeVar("R")
#: How many choices are tried at most: all that there are of four devices, and of any number of devices that are alike.
SUBSETS = 16


def best_subset(
    items: tuple[T, ...],
    find: Callable[[tuple[T, ...]], R | None],
    worth: Callable[[R], tuple[bool, float]],
    promise: Callable[[tuple[T, ...]], float],
    alike: Callable[[T], Hashable],
) -> R | None:
    """The best that is found with all items, or with some of them left out.

    Parameters
    ----------
    items, find
        What is found with which items.
    worth
        How good that is: the larger, the better.
    promise
        The largest second number of ``worth`` that there can be with some of the items; the fewer items, the less. What
        promises the most comes first, and what promises no more than was found is not tried.
    alike
        Equal for items that make no difference: of those, the first are left out first.
    """
    best: R | None = None
    order = count()
    heap: list[tuple[float, int, tuple[T, ...]]] = [(float("-inf"), next(order), items)]
    seen = {tuple(map(alike, items))}
    for _ in range(SUBSETS):
        if not heap:
            break
        promised, _, chosen = heappop(heap)
        if best is not None and -promised <= worth(best)[1]:
            break
        found = find(chosen)
        if found is not None and (best is None or worth(found) > worth(best)):
            best = found
        for at in range(len(chosen)):
            fewer = (*chosen[:at], *chosen[at + 1 :])
            kind = tuple(map(alike, fewer))
            if kind not in seen:
                seen.add(kind)
                heappush(heap, (-promise(fewer), next(order), fewer))
    return best
