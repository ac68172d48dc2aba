"""What says where a state comes from, and finds damage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from states import TOKENS, fill, lengths, what_follows

from conftest import SMALL
from moebind import Context, ContextParams, FlashAttnType, GgmlType, Model, SeqState, StateError, ffi, lib
from moebind.state.seal import SEAL_SIZE, Seal, StateKind


def test_eighty_bytes_are_ours(context: Context) -> None:
    fill(context)
    ours = context.state_get()
    theirs = bytearray(context.state_size - SEAL_SIZE)
    assert lib.llama_state_get_data(context.native, ffi.from_buffer("uint8_t[]", theirs), len(theirs)) == len(theirs)
    assert ours[:-80] == theirs
    assert SEAL_SIZE == 80


@pytest.mark.parametrize("data", [b"", b"x", bytes(79), bytes(200), b"\xff" * 80, np.empty((0, 4), np.uint8)])
def test_what_is_no_state(context: Context, data: bytes) -> None:
    fill(context)
    for take in (context.state_set, SeqState.from_bytes):
        with pytest.raises(StateError, match="is not a whole state"):
            take(data)
    assert lengths(context) == [len(TOKENS)]


def test_many_bytes_that_are_no_state(context: Context) -> None:
    with pytest.raises(StateError, match="is not a whole state"):
        context.state_set(np.zeros(2**31 + 5, np.uint8))  # never touched: it takes no memory


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SMALL.with_type_k(GgmlType.F32), "its type_k is F16, this context's F32"),
        (SMALL.with_type_v(GgmlType.F32), "its type_v is F16, this context's F32"),
        (SMALL.with_flash_attn_type(FlashAttnType.DISABLED), "flash attention"),
        (SMALL.with_n_seq_max(2), "n_seq_max"),
        (SMALL.with_rope_freq_base(77.0), "positions"),
        (SMALL.with_rope_freq_scale(0.5), "positions"),
    ],
)
def test_another_kind_of_cache(
    moe: Model, saved: tuple[bytes, np.ndarray], params: ContextParams, message: str
) -> None:
    with moe.new_context(params) as context:
        fill(context)
        expected = what_follows(context)
        with pytest.raises(StateError, match=message):
            context.state_set(saved[0])
        np.testing.assert_array_equal(what_follows(context), expected)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_found(context: Context, saved: tuple[bytes, np.ndarray], data: st.DataObject) -> None:
    state = bytearray(saved[0])
    if data.draw(st.booleans(), label="cut"):
        state = state[: data.draw(st.integers(0, len(state) - 1))]
    else:
        # The last part is the seal, and the first one what llama.cpp reads first.
        place = data.draw(st.one_of(st.integers(0, len(state) - 1), st.integers(0, 63), st.integers(-SEAL_SIZE, -1)))
        state[place] ^= data.draw(st.integers(1, 255))
    context.state_set(saved[0])
    with pytest.raises(StateError):
        context.state_set(state)
    np.testing.assert_array_equal(what_follows(context), saved[1])


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_under_a_right_seal(context: Context, saved: tuple[bytes, np.ndarray], data: st.DataObject) -> None:
    # Somebody could write such a state. It may be taken, for what is in the cache is numbers; nothing may break.
    context.state_set(saved[0])
    body = bytearray(saved[0][:-SEAL_SIZE])
    seal = Seal.read("the state", memoryview(saved[0]), [StateKind.CONTEXT])
    for _ in range(data.draw(st.integers(1, 3))):
        # What says how much of something there is comes first.
        place = data.draw(st.one_of(st.integers(0, 60), st.integers(0, len(body) - 4)))
        value = data.draw(st.sampled_from([0, 1, 2, 3, 5, 7, 255, 256, 2**31 - 1, 2**31, 2**32 - 1]))
        body[place : place + 4] = value.to_bytes(4, "little")
    body = body[: data.draw(st.sampled_from([len(body), len(body) - 1, len(body) // 2, 60, 0]))]
    state = bytes(body) + replace(seal, size=len(body)).bytes_for([body])
    try:
        context.state_set(state)
    except StateError:
        np.testing.assert_array_equal(what_follows(context), saved[1])
    context.kv_cache_clear()
    context.state_set(saved[0])
    np.testing.assert_array_equal(what_follows(context), saved[1])


def test_states_of_an_older_llama_cpp(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(context)
    whole, one = tmp_path / "whole", tmp_path / "one"
    with monkeypatch.context() as older:
        older.setattr(StateKind, "version", property(lambda kind: 10 if "CONTEXT" in kind.name else 3))
        taken, sequence = context.state_get(), bytes(context.state_seq_get(0))
        context.state_save_file(whole, TOKENS)
        context.state_seq_save_file(one, 0, TOKENS)
    newer = {10: lib.LLAMA_SESSION_VERSION, 3: lib.LLAMA_STATE_SEQ_VERSION}
    for version, load in (
        (10, lambda: context.state_set(taken)),
        (10, lambda: context.state_load_file(whole)),
        (3, lambda: SeqState.from_bytes(sequence)),
        (3, lambda: context.state_seq_load_file(one, 0)),
    ):
        assert newer[version] > version
        words = rf"is of version {version} of llama\.cpp's format; this one reads {newer[version]}"
        with pytest.raises(StateError, match=words):
            load()
    assert lengths(context) == [len(TOKENS)]
