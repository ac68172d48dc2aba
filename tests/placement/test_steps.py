"""Numbers that are found in few tries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moebind.placement.steps import largest, smallest


@given(st.integers(-50, 50), st.integers(0, 300), st.integers(-100, 400))
def test_the_largest_number_for_which_something_holds(low: int, count: int, most: int) -> None:
    asked: list[int] = []

    def holds(number: int) -> bool:
        assert low <= number <= low + count
        asked.append(number)
        return number <= most

    found = largest(low, low + count, holds)
    assert found == (None if most < low else min(most, low + count))
    assert len(asked) <= 2 + (count + 1).bit_length()


@given(st.integers(-50, 50), st.integers(0, 300), st.integers(-100, 400))
def test_the_smallest_number_for_which_something_holds(low: int, count: int, least: int) -> None:
    asked: list[int] = []

    def holds(number: int) -> bool:
        assert low <= number <= low + count
        asked.append(number)
        return number >= least

    found = smallest(low, low + count, holds)
    assert found == (None if least > low + count else max(least, low))
    assert len(asked) <= 2 + (count + 1).bit_length()


def test_no_numbers() -> None:
    assert largest(1, 0, lambda _: True) is None
    assert smallest(1, 0, lambda _: True) is None
