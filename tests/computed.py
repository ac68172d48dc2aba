"""What models compute, in contexts of their own."""

from __future__ import annotations

import numpy as np

from conftest import SMALL
from moebind import Batch, ContextParams, Model

TOKENS = [1, 7, 8, 9, 10, 61]


def logits_of(
    model: Model, tokens: list[int] = TOKENS, params: ContextParams = SMALL, start: list[int] | None = None
) -> np.ndarray:
    """The logits after these tokens, and after ``start`` for an encoder."""
    with model.new_context(params) as context:
        if start is not None:
            context.encode(Batch.get_one(start))
        context.decode(Batch.get_one(tokens))
        return context.get_logits_ith(-1).copy()
