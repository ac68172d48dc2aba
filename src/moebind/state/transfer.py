"""States between Python's memory and llama.cpp. Callers hold the context, and give llama.cpp only what they checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moebind._core import log
from moebind._core.native import CData, ffi, lib
from moebind.enums import StateSeqFlags
from moebind.errors import NativeError, StateError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["read", "read_seq", "write", "write_seq"]


def read(native: CData) -> bytearray:
    """All sequences.

    Raises
    ------
    StateError
        If llama.cpp does not give them out.
    """
    return _read_with(
        lambda: lib.llama_state_get_size(native),
        lambda buffer, size: lib.llama_state_get_data(native, buffer, size),
    )


def read_seq(native: CData, seq: int, flags: StateSeqFlags) -> bytearray:
    """One sequence; raises as :func:`read` does."""
    return _read_with(
        lambda: lib.llama_state_seq_get_size_ext(native, seq, flags),
        lambda buffer, size: lib.llama_state_seq_get_data_ext(native, buffer, size, seq, flags),
    )


@log.quoted()
def _read_with(measure: Callable[[], int], give: Callable[[CData, int], int]) -> bytearray:
    try:
        size = measure()
        data = bytearray(size)
        with ffi.from_buffer("uint8_t[]", data) as buffer:
            written = give(buffer, size)
    except NativeError as error:
        raise StateError(f"llama.cpp could not write the state: {error.message}") from error
    if not size or written != size:
        raise StateError(f"llama.cpp could not write the state{log.recent_lines(3)}")
    return data


def write(native: CData, data: Buffer) -> str | None:
    """Replace all sequences. Returns what llama.cpp says when it does not take them all; nothing is whole then."""
    return _write_with(data, lambda buffer, size: lib.llama_state_set_data(native, buffer, size))


def write_seq(native: CData, data: Buffer, seq: int, flags: StateSeqFlags) -> str | None:
    """Replace one sequence; returns what :func:`write` does."""
    return _write_with(data, lambda buffer, size: lib.llama_state_seq_set_data_ext(native, buffer, size, seq, flags))


@log.quietly()  # the caller's exception says it
def _write_with(data: Buffer, take: Callable[[CData, int], int]) -> str | None:
    lib.moebind_log_forget()
    try:
        with ffi.from_buffer("uint8_t[]", data) as buffer:
            size = len(buffer)
            taken = take(buffer, size)
            # Nothing of nothing is how llama.cpp refuses it.
            return None if size and taken == size else log.recent_lines(3)
    except NativeError as error:
        return f"\n  llama.cpp: {error.message}"
