"""What is measured of one placement."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moebind.bench.measure import spread


@given(st.integers(1, 10_000), st.integers(0, 500))
def test_positions_are_spread(count: int, most: int) -> None:
    chosen = spread(count, most)
    assert 1 <= chosen.size <= max(1, most)
    assert chosen[0] == 0
    assert chosen[-1] < count
    assert (np.diff(chosen) > 0).all()
    if most >= count:
        assert chosen.size == count
