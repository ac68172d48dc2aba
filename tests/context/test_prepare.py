"""What prompts begin with alike."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moebind.context.prepare import common_prefix

TOKENS = st.lists(st.integers(0, 2), max_size=6)


@given(TOKENS, TOKENS)
def test_the_common_prefix(one: list[int], other: list[int]) -> None:
    n = common_prefix(np.array(one, np.int32), np.array(other, np.int32))
    assert one[:n] == other[:n]
    assert n in {len(one), len(other)} or one[n] != other[n]
