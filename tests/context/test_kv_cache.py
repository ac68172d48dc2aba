"""The cache: positions, copies, moves, and what it cannot do."""

from __future__ import annotations

import pytest
from states import decode_all

from conftest import SMALL
from moebind import Batch, Context, GgmlType, Model, MoebindError


def test_cache_operations(moe: Model) -> None:
    with moe.new_context(SMALL.with_n_seq_max(3).with_kv_unified(True)) as context:
        assert (context.kv_cache_seq_pos_min(0), context.kv_cache_seq_pos_max(0)) == (-1, -1)
        decode_all(context, [1, 2, 3, 4])
        assert (context.kv_cache_seq_pos_min(0), context.kv_cache_seq_pos_max(0)) == (0, 3)
        context.kv_cache_seq_cp(0, 1, 0, 2)
        assert context.kv_cache_seq_pos_max(1) == 1
        assert context.kv_cache_seq_rm(0, 3)
        assert context.kv_cache_seq_pos_max(0) == 2
        assert context.kv_cache_can_shift()
        context.kv_cache_seq_add(0, 1, None, 5)
        assert context.kv_cache_seq_pos_max(0) == 7
        context.kv_cache_seq_div(0, 1, None, 2)
        assert context.kv_cache_seq_pos_max(0) == 3
        context.kv_cache_seq_keep(1)
        assert context.kv_cache_seq_pos_max(0) == -1
        assert context.kv_cache_seq_rm(-1)
        assert context.kv_cache_seq_pos_max(1) == -1
        context.kv_cache_clear()


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("kv_cache_seq_rm", (-2,)),
        ("kv_cache_seq_rm", (3,)),
        ("kv_cache_seq_rm", (0, -1)),
        ("kv_cache_seq_cp", (0, 3)),
        ("kv_cache_seq_cp", (-1, 0)),
        ("kv_cache_seq_keep", (255,)),
        ("kv_cache_seq_add", (-1, 0, 1, 1)),
        ("kv_cache_seq_add", (0, 0, 1, 2**31)),
        ("kv_cache_seq_div", (0, 0, 1, 0)),
        ("kv_cache_seq_div", (0, 0, 1, -1)),
        ("kv_cache_seq_pos_min", (3,)),
        ("kv_cache_seq_pos_max", (-1,)),
    ],
)
def test_cache_operations_out_of_range(moe: Model, call: str, arguments: tuple[int, ...]) -> None:
    with moe.new_context(SMALL.with_n_seq_max(3)) as context:
        decode_all(context, [1, 2])
        with pytest.raises(ValueError, match=r"is -?\d+; it takes"):
            getattr(context, call)(*arguments)
        assert context.kv_cache_seq_pos_max(0) == 1


def test_moving_beyond_the_last_position(context: Context) -> None:
    decode_all(context, [1, 2])
    with pytest.raises(ValueError, match="beyond"):
        context.kv_cache_seq_add(0, 0, None, 2**31 - 2)
    # What lies outside the range does not move.
    context.kv_cache_seq_add(0, 5, None, 2**31 - 2)
    context.kv_cache_seq_add(0, 0, 1, 2**31 - 2)
    assert context.kv_cache_seq_pos_max(0) == 2**31 - 2


def test_parts_of_separate_caches_cannot_be_copied(moe: Model) -> None:
    with moe.new_context(SMALL.with_n_seq_max(2)) as context:
        decode_all(context, [1, 2, 3])
        with pytest.raises(ValueError, match="only be copied whole"):
            context.kv_cache_seq_cp(0, 1, 1, 2)
        context.kv_cache_seq_cp(0, 1)
        assert context.kv_cache_seq_pos_max(1) == 2


def test_bf16_caches_cannot_be_moved(moe: Model) -> None:
    with moe.new_context(SMALL.with_type_k(GgmlType.BF16)) as context:
        decode_all(context, [1, 2])
        assert not context.kv_cache_can_shift()
        with pytest.raises(MoebindError, match="cannot be moved"):
            context.kv_cache_seq_add(0, 0, None, 1)


@pytest.mark.parametrize("unified", [False, True])
def test_keeping_one_sequence_forgets_the_others(moe: Model, unified: bool) -> None:
    with moe.new_context(SMALL.with_n_seq_max(3).with_kv_unified(unified)) as context:
        batch = Batch(16)
        for sequence in range(3):
            batch.add_sequence([1, 5, 6 + sequence], sequence)
        context.decode(batch)
        context.kv_cache_seq_keep(1)
        assert [context.kv_cache_seq_pos_max(sequence) for sequence in range(3)] == [-1, 2, -1]
