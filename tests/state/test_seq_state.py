"""Saved states of single sequences, in host memory and on devices."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import bounds
import numpy as np
import pytest
from states import SEVERAL, TOKENS, fill, lengths, what_follows

from conftest import CPU, EXACT, SMALL
from moebind import (
    Batch,
    Context,
    Device,
    FlashAttnType,
    GgmlType,
    Model,
    ModelParams,
    SeqState,
    StateError,
    StateSeqFlags,
)

MakeTiny = Callable[..., Path]


def test_a_sequence_becomes_another(moe: Model) -> None:
    with moe.new_context(SEVERAL) as context:
        fill(context)
        fill(context, [1, 2], 1)
        expected = what_follows(context)
        state = context.state_seq_get(0)
        assert state.flags == StateSeqFlags.NONE
        assert state.nbytes == len(bytes(state)) == context.state_seq_size(0)
        context.state_seq_set(state, 2)
        assert lengths(context) == [6, 2, 6]
        np.testing.assert_array_equal(what_follows(context, 2), expected)
        context.state_seq_set(state, 1)
        assert lengths(context) == [6, 6, 6]
        np.testing.assert_array_equal(what_follows(context, 1), expected)


def test_an_empty_sequence_empties(moe: Model) -> None:
    with moe.new_context(SEVERAL) as context:
        fill(context)
        context.state_seq_set(context.state_seq_get(1), 0)
        assert lengths(context) == [0, 0, 0]


def test_a_state_can_be_kept(moe: Model, context: Context) -> None:
    fill(context)
    expected = what_follows(context)
    state = context.state_seq_get(0)
    assert "96" not in repr(state) or str(state.nbytes) in repr(state)
    for kept in (SeqState.from_bytes(bytes(state)), pickle.loads(pickle.dumps(state))):  # noqa: S301
        assert bytes(kept) == bytes(state)
        with moe.new_context(SMALL) as second:
            second.state_seq_set(kept, 0)
            np.testing.assert_array_equal(what_follows(second), expected)


@pytest.mark.parametrize("flags", [StateSeqFlags.NONE, StateSeqFlags.PARTIAL_ONLY])
def test_a_model_with_a_sliding_window(tiny_path: MakeTiny, flags: StateSeqFlags) -> None:
    path = tiny_path(arch="granite_swa", n_expert=4, n_layer=4)
    with Model.load_from_file(path, CPU) as model, model.new_context(SMALL) as context:
        fill(context)
        expected = what_follows(context)
        state = context.state_seq_get(0, flags)
        assert state.flags == flags
        if flags:
            assert state.nbytes < context.state_seq_size(0)
        else:
            context.kv_cache_clear()
        context.state_seq_set(state, 0)
        np.testing.assert_array_equal(what_follows(context), expected)


@pytest.mark.parametrize("unified", [False, True])
def test_a_sequence_that_finds_no_room_leaves_what_was_there(moe: Model, unified: bool) -> None:
    with moe.new_context(SMALL.with_n_ctx(512)) as context:
        fill(context, [7] * 300)
        state = context.state_seq_get(0)
    params = SMALL.with_n_seq_max(2).with_n_ctx(256 if unified else 512).with_kv_unified(unified)
    if not unified:  # as many parts in both
        with moe.new_context(params.with_n_ctx(1024)) as context:
            fill(context, [7] * 256)
            fill(context, [7] * 256, 1)
            batch = Batch(44)
            batch.extend([7] * 44, 256, 0, False)
            context.decode(batch)
            state = context.state_seq_get(0)
    with moe.new_context(params) as small:
        fill(small)
        if unified:
            small.kv_cache_seq_cp(0, 1)
        else:
            fill(small, seq_id=1)
        expected = [what_follows(small, seq) for seq in (0, 1)]
        with pytest.raises(StateError, match="which holds what it held"):
            small.state_seq_set(state, 0)
        assert lengths(small) == [6, 6]
        for seq in (0, 1):
            np.testing.assert_array_equal(what_follows(small, seq), expected[seq])
        small.kv_cache_seq_rm(1)
        with pytest.raises(StateError, match="which holds what it held"):
            small.state_seq_set(state, 1)
        assert lengths(small) == [6, 0]


def test_a_sequence_that_shares_its_cells_is_brought_back_sharing(moe: Model) -> None:
    with moe.new_context(SMALL) as context:
        fill(context, [9] * 100)
        state = context.state_seq_get(0)
    with moe.new_context(SMALL.with_n_seq_max(2).with_kv_unified(True)) as context:
        fill(context, [7] * 200)
        context.kv_cache_seq_cp(0, 1)  # there would be no room for two of it
        size = context.state_size
        expected = [what_follows(context, seq, 200) for seq in (0, 1)]
        with pytest.raises(StateError, match="which holds what it held"):
            context.state_seq_set(state, 0)
        assert lengths(context) == [200, 200]
        assert context.state_size == size
        for seq in (0, 1):
            np.testing.assert_array_equal(what_follows(context, seq, 200), expected[seq])


def test_states_of_the_wrong_kind(context: Context) -> None:
    fill(context)
    state = context.state_seq_get(0)
    with pytest.raises(StateError, match=r"Use state_seq_set\(SeqState\.from_bytes\(data\)\)$"):
        context.state_set(bytes(state))
    with pytest.raises(StateError, match=r"Use state_set$"):
        SeqState.from_bytes(context.state_get())
    for wrong in (bytes(state), None, context, 3):
        with pytest.raises(TypeError, match="SeqState"):
            context.state_seq_set(wrong, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state_seq_get"):
        SeqState()


def test_another_models_sequence(context: Context, other: Model) -> None:
    fill(context)
    state = context.state_seq_get(0)
    with other.new_context(SMALL) as second:
        fill(second)
        expected = what_follows(second)
        with pytest.raises(StateError, match="another model"):
            second.state_seq_set(state, 0)
        np.testing.assert_array_equal(what_follows(second), expected)


@pytest.mark.parametrize("seq_id", [-1, 1, 255, 256, 2**31, "0", None, True, 0.0])
def test_sequences_that_there_are_not(context: Context, seq_id: int) -> None:
    state = context.state_seq_get(0)
    for call in (context.state_seq_get, context.state_seq_size, lambda seq: context.state_seq_set(state, seq)):
        with pytest.raises((ValueError, TypeError), match="seq_id"):
            call(seq_id)


@pytest.mark.parametrize("flags", [-1, 4, 2**32, 2**70, "ON_DEVICE", None, 1.0, True])
def test_flags_that_there_are_not(context: Context, flags: int) -> None:
    for call in (context.state_seq_get, context.state_seq_size):
        with pytest.raises((ValueError, TypeError), match="flags"):
            call(0, flags)


# --- on the device ---


def test_a_state_left_on_a_device(tiny_path: MakeTiny, device: Device) -> None:
    with Model.load_from_file(tiny_path(n_expert=4), ModelParams(devices=[device])) as model:
        with model.new_context(SEVERAL) as context:
            fill(context)
            expected = what_follows(context)
            state = context.state_seq_get(0, StateSeqFlags.ON_DEVICE)
            assert state.nbytes < context.state_seq_get(0).nbytes
            context.kv_cache_clear()
            for seq in (0, 2):
                context.state_seq_set(state, seq)
                np.testing.assert_array_equal(what_follows(context, seq), expected)  # in a cache of the same shape


def test_a_state_on_the_device_is_only_good_for_its_context(moe: Model) -> None:
    with moe.new_context(SEVERAL) as context, moe.new_context(SEVERAL) as second:
        fill(context)
        expected = what_follows(context)
        state = context.state_seq_get(0, StateSeqFlags.ON_DEVICE)
        for refused in (lambda: bytes(state), lambda: pickle.dumps(state)):
            with pytest.raises(StateError, match="ON_DEVICE"):
                refused()
        with pytest.raises(StateError, match="another context"):
            second.state_seq_set(state, 0)
        context.kv_cache_clear()
        context.state_seq_set(state, 1)
        np.testing.assert_array_equal(what_follows(context, 1), expected)
        newer = context.state_seq_get(0, StateSeqFlags.ON_DEVICE)
        with pytest.raises(StateError, match="only the last one"):
            context.state_seq_set(state, 1)
        context.state_seq_set(newer, 1)
        assert lengths(context) == [0, 0, 0]


def test_pieces_of_every_size_on_the_device(moe: Model) -> None:
    # Without flash attention values lie in many pieces. llama.cpp would put a second state into the memory of the first
    # one, and end the process when its pieces do not fit.
    params = SMALL.with_flash_attn_type(FlashAttnType.DISABLED).with_n_seq_max(2).with_kv_unified(True)
    with moe.new_context(params) as context:
        fill(context, [1, 2, 3, 4], 0)
        context.state_seq_get(0, StateSeqFlags.ON_DEVICE)
        context.kv_cache_clear()
        for pos in range(4):  # sequences take turns
            batch = Batch(2)
            batch.add(pos + 1, pos, 0, True)
            batch.add(pos + 9, pos, 1, False)
            context.decode(batch)
        expected = what_follows(context, 0, 4)
        state = context.state_seq_get(0, StateSeqFlags.ON_DEVICE)
        context.kv_cache_seq_rm(0)
        context.state_seq_set(state, 0)
        np.testing.assert_array_equal(what_follows(context, 0, 4), expected)


def test_quantised_caches_stay_in_host_memory(demo: Model) -> None:
    with demo.new_context(SMALL.with_type_k(GgmlType.Q8_0).with_type_v(GgmlType.Q8_0)) as context:
        fill(context)
        expected = what_follows(context)
        with pytest.raises(StateError, match="type_k is Q8_0"):
            context.state_seq_get(0, StateSeqFlags.ON_DEVICE)
        state = context.state_seq_get(0)
        context.kv_cache_clear()
        context.state_seq_set(state, 0)
        np.testing.assert_array_equal(what_follows(context), expected)


def test_no_room_on_the_device_leaves_what_was_there(moe: Model) -> None:
    params = EXACT.with_n_seq_max(2).with_kv_unified(True)
    with moe.new_context(params) as context:
        fill(context, [7] * 100)
        state = context.state_seq_get(0, StateSeqFlags.ON_DEVICE)
        fill(context, [9] * 120, 1)
        context.kv_cache_seq_rm(0, 50)
        expected = what_follows(context, 1, 120)
        batch = Batch(60)
        batch.extend([3] * 60, 120, 1, False)
        context.decode(batch)
        with pytest.raises(StateError, match="which holds what it held"):
            context.state_seq_set(state, 0)
        assert lengths(context) == [50, 180]
        context.kv_cache_seq_rm(1, 120)
        np.testing.assert_allclose(what_follows(context, 1, 120), expected, atol=bounds.ORDER)


# --- recurrent state, alone and beside a KV cache ---


@pytest.fixture(scope="module", params=["mamba", "lfm2", "lfm2 with a sliding window"])
def recurrent(tiny_path: MakeTiny, request: pytest.FixtureRequest) -> Iterator[Model]:
    arch, _, window = request.param.partition(" ")
    with Model.load_from_file(tiny_path(arch=arch, n_swa=16 if window else 0), CPU) as model:
        assert model.is_recurrent == (arch == "mamba")
        assert model.is_hybrid == (arch == "lfm2")
        yield model


def next_logits(context: Context, seq_id: int) -> np.ndarray:
    """What follows, in a copy of the sequence: this memory cannot take a token out again."""
    spare = context.n_seq_max - 1
    context.kv_cache_seq_cp(seq_id, spare)
    batch = Batch(1)
    batch.add(8, context.kv_cache_seq_pos_max(spare) + 1, [spare], True)
    context.decode(batch)
    logits = context.get_logits_ith(0).copy()
    context.kv_cache_seq_rm(spare)
    return logits


def test_recurrent_state(recurrent: Model) -> None:
    with recurrent.new_context(SEVERAL) as context, recurrent.new_context(SEVERAL) as second:
        fill(context)
        expected = next_logits(context, 0)
        whole, state = context.state_get(), context.state_seq_get(0)
        on_device = context.state_seq_get(0, StateSeqFlags.ON_DEVICE)
        context.kv_cache_clear()
        context.state_seq_set(on_device, 1)
        np.testing.assert_array_equal(next_logits(context, 1), expected)
        for take in (lambda: second.state_set(whole), lambda: second.state_seq_set(state, 0)):
            second.kv_cache_clear()
            take()
            np.testing.assert_array_equal(next_logits(second, 0), expected)


def test_only_what_cannot_be_rolled_back(recurrent: Model) -> None:
    with recurrent.new_context(SEVERAL) as context:
        fill(context)
        expected = next_logits(context, 0)
        part = context.state_seq_get(0, StateSeqFlags.PARTIAL_ONLY)
        assert part.nbytes <= context.state_seq_size(0)
        context.state_seq_set(part, 0)
        np.testing.assert_array_equal(next_logits(context, 0), expected)
        assert lengths(context) == [6, 0, 0]


@pytest.mark.parametrize("unified", [False, True])
def test_recurrent_state_that_does_not_fit_leaves_what_was_there(recurrent: Model, unified: bool) -> None:
    small_params = SMALL.with_n_seq_max(3).with_kv_unified(True) if unified else SEVERAL
    large_params = small_params.with_n_ctx(1536).with_n_seq_max(6 if unified or recurrent.is_recurrent else 3)
    with recurrent.new_context(large_params) as context, recurrent.new_context(small_params) as small:
        for seq in range(large_params.n_seq_max - 1):
            fill(context, [7] * 250 if recurrent.is_hybrid else TOKENS, seq)
        if recurrent.is_hybrid:
            batch = Batch(150)
            batch.extend([7] * 150, 250, 0, False)
            context.decode(batch)
        fill(small)
        small.kv_cache_seq_cp(0, 1)
        expected = [next_logits(small, seq) for seq in (0, 1)]
        with pytest.raises(StateError, match="which holds what it held"):
            small.state_set(context.state_get())
        if recurrent.is_hybrid:
            for flags in (StateSeqFlags.NONE, StateSeqFlags.ON_DEVICE):
                with pytest.raises(StateError, match="which holds what it held|another context"):
                    small.state_seq_set(context.state_seq_get(0, flags), 0)
        assert lengths(small) == [6, 6, 0]
        for seq in (0, 1):
            np.testing.assert_array_equal(next_logits(small, seq), expected[seq])
