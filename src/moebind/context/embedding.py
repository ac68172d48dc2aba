"""Pooled embeddings of many rows of tokens, as many in one batch as fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from moebind.context.batch import Batch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from moebind.context.decode import Decoding

__all__ = ["compute_pooled"]


def compute_pooled(context: Decoding, rows: Sequence[NDArray[np.int32]], result: NDArray[np.float32]) -> None:
    """Compute the pooled embedding of each row into ``result``; every row fits the context's ``n_batch``."""
    size = context.n_batch
    batch = Batch(size)
    for first, part in _batches(rows, size, context.n_seq_max):
        batch.clear()
        for seq, row in enumerate(part):
            batch.add_sequence(row, seq, logits_all=True)
        context.kv_cache_clear(data=False)
        context.decode(batch)
        for seq in range(len(part)):
            result[first + seq] = context.embeddings_seq_ith(seq)


def _batches(
    rows: Sequence[NDArray[np.int32]], size: int, n_seq_max: int
) -> Iterator[tuple[int, Sequence[NDArray[np.int32]]]]:
    """Rows in their order, as many together as fit; with the place of the first."""
    first, n_tokens = 0, 0
    for at, row in enumerate(rows):
        if at > first and (at - first == n_seq_max or n_tokens + row.size > size):
            yield first, rows[first:at]
            first, n_tokens = at, 0
        n_tokens += row.size
    yield first, rows[first:]
