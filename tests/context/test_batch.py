"""Batches."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import SMALL
from moebind import Batch, BatchError, Context, Model, lib


def test_add_one_by_one() -> None:
    batch = Batch(3, n_seq_max=2)
    batch.add(7, 0, [0], False)
    batch.add(8, 1, [0, 1], True)
    batch.add(np.int64(9), np.int32(2), 1, True)
    assert batch.token.tolist() == [7, 8, 9]
    assert batch.pos.tolist() == [0, 1, 2]
    assert batch.logits.tolist() == [0, 1, 1]
    assert batch.n_tokens == len(batch) == batch.capacity == 3
    with pytest.raises(BatchError, match="1 more tokens do not fit: the batch holds 3 of 3"):
        batch.add(1, 3, 0, False)
    batch.clear()
    assert batch.n_tokens == 0
    assert batch.capacity == 3


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    st.integers(0, 1000),
    st.integers(0, 255),
    st.booleans(),
)
def test_extend_is_add_in_a_loop(tokens: list[int], pos: int, seq_id: int, logits: bool) -> None:
    fast, slow = Batch(len(tokens)), Batch(len(tokens))
    fast.extend(tokens, pos, seq_id, logits)
    for offset, token in enumerate(tokens):
        slow.add(token, pos + offset, seq_id, logits)
    for name in ("token", "pos", "logits", "_seq_id", "_n_seq_id"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))


def test_extend_takes_arrays() -> None:
    batch = Batch(4)
    batch.extend([1, 2], [5, 9], [1, 0], np.array([True, False]))
    batch.extend(np.array([3, 4], np.int64), 2, 3, [0, 1])
    assert batch.pos.tolist() == [5, 9, 2, 3]
    assert batch._seq_id[:, 0].tolist() == [1, 0, 3, 3]
    assert batch.logits.tolist() == [1, 0, 0, 1]


def test_add_sequence_has_logits_at_the_end() -> None:
    batch = Batch(6)
    batch.add_sequence([1, 2, 3], 0)
    batch.add_sequence([4, 5, 6], 1, logits_all=True, pos=10)
    assert batch.logits.tolist() == [0, 0, 1, 1, 1, 1]
    assert batch.pos.tolist() == [0, 1, 2, 10, 11, 12]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 0, True), "token is -1"),
        ((2**31, 0, 0, True), "token is"),
        ((1, -1, 0, True), "pos is -1"),
        ((1, 2**31 - 1, 0, True), "pos is"),
        ((1, 0, -1, True), "seq_ids"),
        ((1, 0, 256, True), "seq_ids"),
        ((1, 0, [], True), "0 ids"),
        ((1, 0, [0, 1], True), "takes 1 to 1"),
    ],
)
def test_bad_values(arguments: tuple[int, int, int, bool], message: str) -> None:
    batch = Batch(1)
    with pytest.raises(ValueError, match=message):
        batch.add(*arguments)
    assert batch.n_tokens == 0


@pytest.mark.parametrize(
    "arguments",
    [("1", 0, 0, True), (1.0, 0, 0, True), (1, None, 0, True), (1, 0, "0", True), (1, 0, 0, "yes"), (True, 0, 0, True)],
)
def test_bad_types(arguments: tuple[int, int, int, bool]) -> None:
    with pytest.raises(TypeError):
        Batch(1).add(*arguments)


@pytest.mark.parametrize("size", [0, -1, 2**24 + 1, 2**31])
def test_bad_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="n_tokens"):
        Batch(size)
    with pytest.raises(ValueError, match="n_seq_max"):
        Batch(1, 0 if size <= 0 else size)


def test_extend_refuses_what_does_not_fit_together() -> None:
    batch = Batch(4)
    for arguments, message in (
        (([1, 2], [0], 0, False), "pos has 1 entries for 2"),
        (([1, 2], 0, [0, 1, 2], False), "seq_id has 3"),
        (([1, 2], 0, 0, np.array([True])), "logits has the shape"),
        (([1, 2, 3], 2**31 - 3, 0, False), "beyond the last position"),
        (([1] * 5, 0, 0, False), "do not fit"),
    ):
        with pytest.raises(BatchError, match=message):
            batch.extend(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dimensions"):
        batch.extend([[1, 2]], 0, 0, False)
    with pytest.raises(BatchError, match="empty"):
        batch.add_sequence([], 0)
    assert batch.n_tokens == 0


def test_views_outlive_their_batch() -> None:
    batch = Batch(3)
    batch.add_sequence([1, 2, 3], 0)
    view = batch.token
    del batch
    gc.collect()
    assert view.tolist() == [1, 2, 3]


def test_get_one_continues_the_sequence(context: Context) -> None:
    context.decode(Batch.get_one([1, 2, 3]))
    batch = Batch.get_one([4])
    assert batch.pos.tolist() == [-1]
    context.decode(batch)
    assert context.kv_cache_seq_pos_max(0) == 3
    with pytest.raises(BatchError, match="made whole"):
        batch.add(1, 0, 0, True)
    with pytest.raises(BatchError, match="empty"):
        Batch.get_one([])


def test_embeddings_are_tokens_looked_up(moe: Model, tiny_path: object) -> None:
    import gguf

    rows = next(t.data for t in gguf.GGUFReader(moe.path).tensors if t.name == "token_embd.weight")
    tokens = np.array([5, 9, 200])
    with moe.new_context(SMALL) as context:
        context.decode(Batch.get_one(tokens))
        expected = context.get_logits_ith(-1).copy()
        context.kv_cache_clear()
        batch = Batch.from_embeddings(rows[tokens], logits=[0, 0, 1])
        context.decode(batch)
        np.testing.assert_array_equal(context.get_logits_ith(2), expected)  # the same rows, computed the same way
        with pytest.raises(BatchError, match="columns; this model takes 64"):
            context.decode(Batch.from_embeddings(np.zeros((1, 63))))
    with pytest.raises(BatchError, match="shape"):
        Batch.from_embeddings(np.zeros(3))


def test_structs_are_what_llama_cpp_makes() -> None:
    ours = Batch.get_one([1, 2])._struct()
    assert ours.n_tokens == 2
    assert not ours.pos
    assert lib.llama_batch_init  # the raw way is there too
