"""Samplers on logits of their own."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from moebind import Sampler, TokenDataArray

any_logits = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=60)
LOGITS = [1.0, 4.0, 2.0, 3.0, 0.0]


def apply(sampler: Sampler, logits: list[float] = LOGITS) -> TokenDataArray:
    candidates = TokenDataArray.from_logits(logits)
    sampler.apply(candidates)
    return candidates


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()
