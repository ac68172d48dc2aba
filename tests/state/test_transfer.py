"""States between Python's memory and llama.cpp, below every check of where they come from."""

from __future__ import annotations

import numpy as np
import pytest
from states import SEVERAL, fill, lengths, what_follows

from conftest import SMALL
from moebind import Context, Model, StateError, StateSeqFlags, ffi, lib
from moebind._core.native import CData
from moebind.errors import NativeError
from moebind.state import transfer

NONE = StateSeqFlags.NONE


def test_what_is_read_is_what_llama_cpp_writes(context: Context) -> None:
    fill(context)
    data = transfer.read(context.native)
    theirs = bytearray(lib.llama_state_get_size(context.native))
    with ffi.from_buffer("uint8_t[]", theirs) as buffer:
        assert lib.llama_state_get_data(context.native, buffer, len(theirs)) == len(theirs)
    assert data == theirs


@pytest.mark.parametrize("as_bytes", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_all_sequences_there_and_back(moe: Model, as_bytes: type) -> None:
    with moe.new_context(SEVERAL) as context, moe.new_context(SEVERAL) as other:
        fill(context, [1, 2, 3], 0)
        fill(context, [1, 7], 2)
        assert transfer.write(other.native, as_bytes(transfer.read(context.native))) is None
        assert lengths(other) == [3, 0, 2]
        np.testing.assert_array_equal(what_follows(other, 2, 2), what_follows(context, 2, 2))


def test_one_sequence_becomes_another(moe: Model) -> None:
    with moe.new_context(SEVERAL) as context:
        fill(context, [1, 2, 3], 0)
        data = transfer.read_seq(context.native, 0, NONE)
        assert transfer.write_seq(context.native, data, 2, NONE) is None
        assert lengths(context) == [3, 0, 3]
        np.testing.assert_array_equal(what_follows(context, 2, 3), what_follows(context, 0, 3))


def test_a_refusal_is_what_llama_cpp_says(moe: Model) -> None:
    with moe.new_context(SMALL.with_n_ctx(512)) as context, moe.new_context(SMALL) as small:
        fill(context, [7] * 300)
        for said in (
            transfer.write(small.native, transfer.read(context.native)),
            transfer.write_seq(small.native, transfer.read_seq(context.native, 0, NONE), 0, NONE),
        ):
            assert said is not None
            assert said.startswith(":\n  llama.cpp: state_read_meta: not enough cells in kv cache\n")


@pytest.mark.parametrize("size", [0, 1, 7, 100])
def test_data_that_ends_early_is_refused(context: Context, size: int) -> None:
    fill(context)
    whole, sequence = transfer.read(context.native), transfer.read_seq(context.native, 0, NONE)
    assert transfer.write(context.native, whole[:size]) is not None
    assert transfer.write_seq(context.native, sequence[:size], 0, NONE) is not None


def test_a_state_that_cannot_be_written() -> None:
    def fail(*_: object) -> int:
        raise NativeError("state.cpp:7: GGML_ASSERT(whole) failed")

    def half(buffer: CData, size: int) -> int:
        return size // 2

    with pytest.raises(StateError, match=r"could not write the state: state\.cpp:7"):
        transfer._read_with(fail, half)
    for size in (0, 8):
        with pytest.raises(StateError, match="llama.cpp could not write the state"):
            transfer._read_with(lambda size=size: size, half)  # type: ignore[misc]
    assert transfer._write_with(b"data", fail) == "\n  llama.cpp: state.cpp:7: GGML_ASSERT(whole) failed"
