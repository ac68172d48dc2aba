"""The sign test: what it says of coins, of shifted noise and of disturbed rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebind.tuning.decision import ERROR, can_still_win, interval, is_better, rounds_needed, typical


def test_levels_are_those_of_coins() -> None:
    assert is_better([0.1] * 5, 1 / 32)
    assert not is_better([0.1] * 5, 1 / 33)
    # One of ten astray: eleven of the 1024 ways are as good.
    assert is_better([0.1] * 9 + [-5.0], 11 / 1024)
    assert not is_better([0.1] * 9 + [-5.0], 10.9 / 1024)


def test_no_difference_counts_against() -> None:
    assert not is_better([0.0] * 20, 0.5)
    assert is_better([0.0] + [0.1] * 9, 11 / 1024)


def test_nothing_is_better_without_rounds() -> None:
    assert not is_better([], 0.5)


@pytest.mark.parametrize("level", [0.5, 0.05, 0.01, 0.05 / 13, 1e-6])
def test_as_many_rounds_as_the_level_needs(level: float) -> None:
    rounds = rounds_needed(level)
    assert is_better([1.0] * rounds, level)
    assert not is_better([1.0] * (rounds - 1), level)


def test_a_decision_that_is_lost_is_known_early() -> None:
    assert can_still_win([0.1, 0.1], 7, 0.01)
    assert not can_still_win([0.1, -0.1], 7, 0.01)
    assert can_still_win([0.1, -0.1], 12, 0.01)


def test_a_disturbance_counts_as_one_round() -> None:
    quiet = [0.02] * 19
    assert is_better([*quiet, -0.001], 0.01) == is_better([*quiet, -1e9], 0.01) is True
    assert typical([*quiet, -1e9]) == 0.02


def test_medians() -> None:
    assert typical([3.0, 1.0, 2.0]) == 2.0
    assert typical([4.0, 1.0, 2.0, 3.0]) == 2.5


def test_the_interval_of_few_rounds_is_all_that_was_seen() -> None:
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_the_interval_belongs_to_the_test() -> None:
    # At the level of either side, the test says "above" of just those values that are below the interval.
    differences = [0.3, -0.1, 0.5, 0.2, 0.7, 0.4, 0.9, 0.1, 0.6, 0.8, 1.1]
    low, high = interval(differences)
    assert is_better([each - (low - 1e-9) for each in differences], ERROR / 2)
    assert not is_better([each - (low + 1e-9) for each in differences], ERROR / 2)
    assert is_better([high + 1e-9 - each for each in differences], ERROR / 2)
    assert not is_better([high - 1e-9 - each for each in differences], ERROR / 2)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40))
def test_the_median_is_in_its_interval(differences: list[float]) -> None:
    low, high = interval(differences)
    assert low <= typical(differences) <= high


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    n = 2000
    covered = sum(low <= 0 <= high for low, high in (interval(random.standard_cauchy(11).tolist()) for _ in range(n)))
    # The interval is exact: the chance is at least 1 - ERROR, and this is four standard deviations below it.
    assert covered / n > 1 - ERROR - 4 * math.sqrt(ERROR * (1 - ERROR) / n)
