"""Embeddings of sequences: contexts that pool, and models for them."""

from __future__ import annotations

from pathlib import Path

import bounds
import numpy as np
import tiny  # put on the path by conftest.py

from conftest import EXACT
from moebind import Batch, Model, PoolingType

POOLED = [PoolingType.MEAN, PoolingType.CLS, PoolingType.LAST]
EMBEDDING = EXACT.with_embeddings(True).with_kv_unified(True)
EMBEDDING = EMBEDDING.with_n_ubatch(240)  # whatever n_seq_max: MEAN takes a multiple of it
#: How far two right embeddings of each model may be apart, from one batch to another.
APART = {"dense": bounds.ORDER, "silu": bounds.ORDER, "bert": bounds.GELU}
SEQUENCES = [[1, 7, 8, 9, 2], [1, 60, 2], [1, 270, 270, 271, 61, 5, 5, 2]]


def batch_of(sequences: list[list[int]]) -> Batch:
    batch = Batch(sum(map(len, sequences)))
    for seq, tokens in enumerate(sequences):
        batch.add_sequence(tokens, seq, logits_all=True)
    return batch


def pooled(model: Model, pooling: PoolingType, sequences: list[list[int]]) -> list[np.ndarray]:
    params = EMBEDDING.with_pooling_type(pooling).with_n_seq_max(len(sequences))
    with model.new_context(params) as context:
        context.decode(batch_of(sequences))
        return [context.embeddings_seq_ith(seq) for seq in range(len(sequences))]


def of_tokens(model: Model, sequences: list[list[int]]) -> list[np.ndarray]:
    params = EMBEDDING.with_pooling_type(PoolingType.NONE).with_n_seq_max(len(sequences))
    with model.new_context(params) as context:
        context.decode(batch_of(sequences))
        rows = context.get_embeddings().copy()
        assert all(np.array_equal(context.embeddings_ith(i), row) for i, row in enumerate(rows))
    ends = np.cumsum([len(tokens) for tokens in sequences])
    return np.split(rows, ends[:-1])


def rewritten(path: Path, shape: tiny.Shape, **metadata: object) -> Path:
    """A tiny model with more metadata."""
    told = {**tiny._metadata(shape), **{key.replace("__", "."): value for key, value in metadata.items()}}
    tiny._write_file(path, shape.arch, told, tiny._tensors(shape, np.random.default_rng(shape.seed)))
    return path
