"""The choice of the devices that take part."""

from __future__ import annotations

from itertools import chain, combinations

from hypothesis import given
from hypothesis import strategies as st

from moebind.placement.subsets import SUBSETS, best_subset


def parts(count: int) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(range(count), size) for size in range(count + 1)))


@given(st.integers(0, 4), st.data())
def test_the_best_of_all_parts(count: int, data: st.DataObject) -> None:
    items = tuple(range(count))
    values = {
        part: data.draw(st.one_of(st.none(), st.tuples(st.booleans(), st.integers(0, 9)))) for part in parts(count)
    }
    # As tight as it may be: with more items, no less.
    promises = {part: max((values[p] or (True, -1))[1] for p in values if set(p) <= set(part)) for part in parts(count)}
    asked: list[tuple[int, ...]] = []

    def find(part: tuple[int, ...]) -> tuple[bool, int] | None:
        asked.append(part)
        return values[part]

    found = best_subset(items, find, lambda value: value, promises.__getitem__, lambda item: item)
    there = [value for value in values.values() if value is not None]
    assert (found is None) == (not there)
    if found is not None:
        assert found[1] == max(value for fits, value in there if fits or not found[0])
    assert len(set(asked)) == len(asked)
    assert asked[0] == items


def test_what_promises_no_more_is_not_tried() -> None:
    asked: list[tuple[int, ...]] = []

    def find(part: tuple[int, ...]) -> int:
        asked.append(part)
        return 5

    assert best_subset((1, 2), find, lambda value: (True, value), lambda part: 5.0, lambda item: item) == 5
    assert asked == [(1, 2)]


def test_of_those_that_are_alike_only_their_number_counts() -> None:
    asked: list[tuple[int, ...]] = []
    assert (
        best_subset(tuple(range(12)), asked.append, lambda value: (True, 0), lambda part: 1.0, lambda item: 0) is None
    )
    assert asked == [tuple(range(at, 12)) for at in range(13)]
    asked.clear()
    best_subset(
        tuple(range(12)), asked.append, lambda value: (True, 0), lambda part: float(len(part)), lambda item: item
    )
    assert len(asked) == SUBSETS
    assert {len(part) for part in asked[:13]} == {12, 11}
