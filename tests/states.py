"""Contexts that hold something, and ways to see what."""

from __future__ import annotations

import numpy as np

from conftest import SMALL
from moebind import Batch, Context

TOKENS = [1, 5, 9, 40, 7, 100]
#: Three sequences, with caches of their own.
SEVERAL = SMALL.with_n_seq_max(3).with_n_ctx(768)


def fill(context: Context, tokens: list[int] = TOKENS, seq_id: int = 0) -> None:
    batch = Batch(len(tokens))
    batch.add_sequence(tokens, seq_id)
    context.decode(batch)


def decode_all(context: Context, tokens: list[int], seq_id: int = 0) -> None:
    batch = Batch(len(tokens))
    batch.add_sequence(tokens, seq_id, logits_all=True)
    context.decode(batch)


def what_follows(context: Context, seq_id: int = 0, pos: int = len(TOKENS), token: int = 8) -> np.ndarray:
    """The logits after one more token, which is taken out again."""
    batch = Batch(1)
    batch.add(token, pos, [seq_id], True)
    context.decode(batch)
    logits = context.get_logits_ith(0).copy()
    context.kv_cache_seq_rm(seq_id, pos)
    return logits


def lengths(context: Context) -> list[int]:
    return [context.kv_cache_seq_pos_max(seq) + 1 for seq in range(context.n_seq_max)]
