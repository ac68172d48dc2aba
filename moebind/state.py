"""Saved states: the part of ``Context`` that writes its sequences down and takes them back."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind import checks, files, log
from moebind._native import CData, ffi, lib
from moebind._owner import Owner
from moebind.enums import StateSeqFlags
from moebind.errors import NativeError, StateError, StateNotFoundError
from moebind.state_format import SEAL_SIZE, Cache, Kind, Seal

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Buffer, Self

    from moebind.model import Model
    from moebind.params import ContextParams

__all__ = ["SeqState", "State"]

#: What llama.cpp's files begin with: magic, version, number of tokens.
_HEAD = 12
#: What it writes before a sequence in memory, and not in a file.
_PREFIX = 8


class SeqState:
    """One sequence as it was, from :meth:`Context.state_seq_get`: for the same context, or another of the same model.

    ``bytes(state)`` is all of it, to be kept; :meth:`from_bytes` takes it back. It can be pickled. Neither can be done
    with a state that was taken with ``ON_DEVICE``, whose data is in the memory of the context's devices.

    Examples
    --------
    >>> state = context.state_seq_get(0)
    >>> context.state_seq_set(SeqState.from_bytes(bytes(state)), 1)
    """

    __slots__ = ("_cache", "_data", "_flags", "_ticket", "_tokens")
    _cache: Cache
    _data: Buffer
    _flags: StateSeqFlags
    #: Of ON_DEVICE: what the context knows it by.
    _ticket: object
    #: What generate() knew of the sequence.
    _tokens: NDArray[np.int32] | None

    def __init__(self) -> None:
        raise TypeError("states are taken with Context.state_seq_get(seq_id), or made with SeqState.from_bytes(data)")

    @classmethod
    def _of(cls, cache: Cache, data: Buffer, flags: StateSeqFlags, ticket: object = None) -> Self:
        state = cls.__new__(cls)
        state._cache, state._data, state._flags, state._ticket, state._tokens = cache, data, flags, ticket, None
        return state

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Make one of ``bytes(state)``.

        Parameters
        ----------
        data
            bytes, bytearray, memoryview or an array of bytes; it is copied.

        Raises
        ------
        StateError
            If it is damaged, cut short, or something else.
        """
        view = checks.octets("data", data)
        seal = Seal.read("data", view, [Kind.SEQUENCE])
        return cls._of(seal.cache, bytes(view[: seal.size]), seal.flags)

    @property
    def flags(self) -> StateSeqFlags:
        """How it was taken."""
        return self._flags

    @property
    def nbytes(self) -> int:
        """The bytes that it has in host memory: those of ``bytes(state)``, if it can be asked for."""
        return memoryview(self._data).nbytes + SEAL_SIZE

    def __bytes__(self) -> bytes:
        if self._flags & StateSeqFlags.ON_DEVICE:
            raise StateError("a state that was taken with ON_DEVICE is in its context's devices: take one without")
        size = memoryview(self._data).nbytes
        return bytes(self._data) + Seal(self._cache, Kind.SEQUENCE, size, self._flags).bytes_for([self._data])

    def __reduce__(self) -> tuple[Callable[[Buffer], SeqState], tuple[bytes]]:
        return SeqState.from_bytes, (bytes(self),)

    def __repr__(self) -> str:
        return f"<SeqState, {self.nbytes} bytes, flags={self._flags!r}>"


class State(Owner):
    """A context's sequences, written down and taken back. :class:`moebind.Context` has it.

    What is saved is the cache: not logits, adapters or samplers. A state is refused with :class:`StateError` before
    anything is changed when it is damaged, of another model or of another kind of cache; when it turns out not to fit,
    the context gets back what it held.
    """

    if TYPE_CHECKING:  # Context has them
        _model: Model
        _params: ContextParams
        _n_seq_max: int
        _unified: bool
        _history: dict[int, NDArray[np.int32]]

        def _exclusive(self) -> AbstractContextManager[CData]: ...
        def _seq(self, name: str, seq_id: SupportsIndex, low: int = 0) -> int: ...
        def _forget_outputs(self) -> None: ...

    _cache: Cache | None = None
    #: The last state of each sequence that was left on devices.
    _on_device: dict[int, object]

    # --- all sequences ---

    @property
    def state_size(self) -> int:
        """How many bytes :meth:`state_get` would give now (``llama_state_get_size``)."""
        with self._exclusive() as native:
            return int(lib.llama_state_get_size(native)) + SEAL_SIZE

    def state_get(self) -> bytes:
        """All sequences of the cache, as bytes.

        Returns
        -------
        bytes
            llama.cpp's data, and 96 bytes that say which model and kind of cache it is of.

        Raises
        ------
        StateError
            If llama.cpp cannot write it, or the model's file is gone or was changed.

        Notes
        -----
        Stands on ``llama_state_get_data``.
        """
        with self._exclusive() as native:
            cache, data = self._cache_kind(native), _read(native)
        return b"".join([data, Seal(cache, Kind.CONTEXT, len(data)).bytes_for([data])])

    def state_set(self, data: Buffer) -> None:
        """Take back all sequences, in place of those that there are.

        Parameters
        ----------
        data
            From :meth:`state_get`: bytes, bytearray, memoryview or an array of bytes. It may come from another context
            of the same model, with its tensors elsewhere, if the kind of cache is the same: ``type_k``, ``type_v``,
            flash attention, ``n_seq_max`` unless both have ``kv_unified``, and the parameters of positions.

        Raises
        ------
        StateError
            If the state is damaged, of another model or kind of cache, or does not fit; the context holds what it held.

        Notes
        -----
        Stands on ``llama_state_set_data``. A context that holds something keeps a copy of it during the call.
        """
        view = checks.octets("data", data)
        self._open()
        seal = Seal.read("data", view, [Kind.CONTEXT])
        with self._exclusive() as native:
            self._check(native, "data", seal.cache)
            self._replace(native, "data", view[: seal.size])
            self._history.clear()

    def state_save_file(self, path: str | os.PathLike[str], tokens: ArrayLike | None = None) -> None:
        """Save all sequences and a list of tokens to a file.

        The file is written under another name, brought to the disk and renamed: a crash or a full disk leaves the one
        that was there before.

        Parameters
        ----------
        path
            The file. Its folder must exist.
        tokens
            What sequence 0 holds, for whoever loads the file; None: what :meth:`generate` knows of it.

        Raises
        ------
        StateError
            If it cannot be written.
        StateNotFoundError
            If the folder does not exist.

        Notes
        -----
        What comes before the last 96 bytes is what ``llama_state_save_file`` writes.
        """
        self._save(path, tokens, 0, Kind.CONTEXT_FILE)

    def state_load_file(self, path: str | os.PathLike[str]) -> NDArray[np.int32]:
        """Take back all sequences from a file of :meth:`state_save_file`, in place of those that there are.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        numpy.ndarray
            int32, ``(n_tokens,)``: the tokens that were saved with it. :meth:`generate` takes them to be what sequence
            0 holds, and does not decode them again.

        Raises
        ------
        StateNotFoundError
            If there is no such file.
        StateError
            As for :meth:`state_set`; the context holds what it held.
        """
        seal, tokens, body, name = self._load(path, Kind.CONTEXT_FILE)
        with self._exclusive() as native:
            self._check(native, name, seal.cache)
            self._replace(native, name, body)
            self._history.clear()
            self._history[0] = tokens
        return tokens.copy()

    # --- one sequence ---

    def state_seq_size(self, seq_id: SupportsIndex, flags: StateSeqFlags | int = StateSeqFlags.NONE) -> int:
        """How many bytes of host memory :meth:`state_seq_get` would take now (``llama_state_seq_get_size_ext``)."""
        seq, chosen = self._seq("seq_id", seq_id), _flags(flags)
        with self._exclusive() as native:
            return int(lib.llama_state_seq_get_size_ext(native, seq, chosen)) + SEAL_SIZE

    def state_seq_get(self, seq_id: SupportsIndex, flags: StateSeqFlags | int = StateSeqFlags.NONE) -> SeqState:
        """Take one sequence as it is.

        Parameters
        ----------
        seq_id
            The sequence.
        flags
            ``PARTIAL_ONLY``: only what cannot be rolled back otherwise, sliding-window and recurrent state.
            ``ON_DEVICE``: leave the data on the devices. That is faster, but the state is only good for this context,
            and until the sequence is taken with this flag again.

        Returns
        -------
        SeqState

        Raises
        ------
        StateError
            If llama.cpp cannot write it, the model's file is gone or was changed, or ``ON_DEVICE`` is not possible:
            quantised keys or values, or no room on a device.

        Notes
        -----
        Stands on ``llama_state_seq_get_data_ext``.
        """
        seq, chosen = self._seq("seq_id", seq_id), _flags(flags)
        ticket = None
        with self._exclusive() as native:
            cache = self._cache_kind(native)
            if chosen & StateSeqFlags.ON_DEVICE:
                self._make_room(native, seq)
                ticket = self._on_device[seq] = object()
            state = SeqState._of(cache, _read_seq(native, seq, chosen), chosen, ticket)
            state._tokens = self._history.get(seq)
        return state

    def state_seq_set(self, state: SeqState, seq_id: SupportsIndex) -> None:
        """Take back one sequence, in place of what it holds.

        Parameters
        ----------
        state
            From :meth:`state_seq_get` or :meth:`SeqState.from_bytes`.
        seq_id
            The sequence that it becomes; it need not be the one that it was.

        Raises
        ------
        StateError
            If the state is of another model or kind of cache (see :meth:`state_set`), was left on the devices of
            another context or is no longer there, or finds no room; the context holds what it held.

        Notes
        -----
        Stands on ``llama_state_seq_set_data_ext``. If the sequence holds something, a copy is kept during the call.
        """
        if not isinstance(state, SeqState):
            raise TypeError(f"state is {state!r}; it takes a SeqState: from state_seq_get, or SeqState.from_bytes(data)")
        seq = self._seq("seq_id", seq_id)
        with self._exclusive() as native:
            if state._flags & StateSeqFlags.ON_DEVICE and not any(
                ticket is state._ticket for ticket in self._on_device.values()
            ):
                raise StateError(
                    "this state was left on the devices of another context, or its sequence was taken with ON_DEVICE "
                    "again since: only the last one is there"
                )
            self._check(native, "the state", state._cache)
            self._replace_seq(native, "the state", state._data, seq, state._flags)
            # A part says nothing of what the rest of the sequence is.
            self._remember(seq, None if state._flags & StateSeqFlags.PARTIAL_ONLY else state._tokens)

    def state_seq_save_file(
        self, path: str | os.PathLike[str], seq_id: SupportsIndex, tokens: ArrayLike | None = None
    ) -> None:
        """Save one sequence and its tokens to a file, as :meth:`state_save_file` does.

        Parameters
        ----------
        path
            The file. Its folder must exist.
        seq_id
            The sequence.
        tokens
            What it holds; None: what :meth:`generate` knows of it.

        Raises
        ------
        StateError
            If it cannot be written.
        StateNotFoundError
            If the folder does not exist.

        Notes
        -----
        ``llama_state_seq_load_file`` can load the file: what comes before the last 96 bytes is what
        ``llama_state_seq_save_file`` writes.
        """
        self._save(path, tokens, self._seq("seq_id", seq_id), Kind.SEQUENCE_FILE)

    def state_seq_load_file(self, path: str | os.PathLike[str], seq_id: SupportsIndex) -> NDArray[np.int32]:
        """Take back one sequence from a file of :meth:`state_seq_save_file`, in place of what it holds.

        Parameters
        ----------
        path
            The file.
        seq_id
            The sequence that it becomes; it need not be the one that it was.

        Returns
        -------
        numpy.ndarray
            int32, ``(n_tokens,)``: the tokens that were saved with it. :meth:`generate` takes them to be what the
            sequence holds, and does not decode them again.

        Raises
        ------
        StateNotFoundError
            If there is no such file.
        StateError
            As for :meth:`state_seq_set`; the context holds what it held.
        """
        seq = self._seq("seq_id", seq_id)
        seal, tokens, body, name = self._load(path, Kind.SEQUENCE_FILE)
        with self._exclusive() as native:
            self._check(native, name, seal.cache)
            self._replace_seq(native, name, body, seq, StateSeqFlags.NONE)
            self._remember(seq, tokens)
        return tokens.copy()

    # --- underneath; the caller holds the context ---

    def _remember(self, seq: int, tokens: NDArray[np.int32] | None) -> None:
        self._history.pop(seq, None)
        if tokens is not None:
            self._history[seq] = tokens

    def _cache_kind(self, native: CData) -> Cache:
        if self._cache is None:
            self._cache = Cache.of(self._model, self._params, native)
        return self._cache

    def _check(self, native: CData, name: str, cache: Cache) -> None:
        if difference := cache.difference(self._cache_kind(native)):
            raise StateError(f"{name} does not go with this context: {difference}")

    def _make_room(self, native: CData, seq: int) -> None:
        """Before a sequence is left on devices: llama.cpp ends the process when that does not work."""
        for name in ("type_k", "type_v"):
            kind = getattr(self._params, name)
            # It counts blocks where it means elements.
            if lib.ggml_blck_size(kind) > 1:
                raise StateError(f"{name} is {kind.name}: ON_DEVICE takes caches of F32, F16 and BF16 only")
        self._on_device.pop(seq, None)
        lib.moebind_state_forget_on_device(native, seq)
        size = int(lib.llama_state_seq_get_size_ext(native, seq, StateSeqFlags.NONE))
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        for device in self._model._native_devices():
            lib.ggml_backend_dev_memory(device, free, total)
            if total[0] and size > free[0]:
                device_name = ffi.string(lib.ggml_backend_dev_name(device)).decode()
                raise StateError(f"the sequence's {size} bytes do not fit {device_name}, which has {free[0]} free")

    def _replace(self, native: CData, name: str, data: Buffer) -> None:
        """Take all sequences, or keep those that there are."""
        memory = lib.llama_get_memory(native)
        held = None
        if any(lib.llama_memory_seq_pos_max(memory, seq) >= 0 for seq in range(self._n_seq_max)):
            held = _read(native)
        failure = _write(native, data)
        if failure is None:
            self._forget_outputs()
            return
        lib.llama_memory_clear(memory, True)
        self._put_back(name, failure, None if held is None else _write(native, held))

    def _replace_seq(self, native: CData, name: str, data: Buffer, seq: int, flags: StateSeqFlags) -> None:
        """Take one sequence, or keep what it holds."""
        memory = lib.llama_get_memory(native)
        recurrent = self._model.is_recurrent or self._model.is_hybrid
        # A sequence that shares cells with others can only be brought back as it was together with them.
        shared = self._n_seq_max > 1 and (self._unified or recurrent)
        held = None
        if lib.llama_memory_seq_pos_max(memory, seq) >= 0:
            held = _read(native) if shared else _read_seq(native, seq, StateSeqFlags.NONE)
        failure = _write_seq(native, data, seq, flags)
        if failure is None:
            return
        lib.llama_memory_seq_rm(memory, seq, -1, -1)  # what was taken of it
        if held is None:
            self._put_back(name, failure, None)
        elif shared:
            self._put_back(name, failure, _write(native, held))
        else:
            self._put_back(name, failure, _write_seq(native, held, seq, StateSeqFlags.NONE))

    def _put_back(self, name: str, failure: str, again: str | None) -> None:
        if again is None:
            raise StateError(f"{name} does not fit this context, which holds what it held{failure}")
        lib.llama_memory_clear(lib.llama_get_memory(self._open()), True)
        self._history.clear()
        raise StateError(f"{name} does not fit this context, and what it held could not be brought back{failure}{again}")

    # --- files ---

    def _save(self, path: str | os.PathLike[str], tokens: ArrayLike | None, seq: int, kind: Kind) -> None:
        name = checks.path("path", path)
        given = None if tokens is None else checks.int32_array("tokens", tokens, 0, self._model.n_vocab - 1)
        with self._exclusive() as native:
            known = self._history.get(seq, np.empty(0, np.int32)) if given is None else given
            cache = self._cache_kind(native)
            if kind is Kind.CONTEXT_FILE:
                data, prefix = memoryview(_read(native)), bytes(_PREFIX)
            else:
                whole = memoryview(_read_seq(native, seq, StateSeqFlags.NONE))
                data, prefix = whole[_PREFIX:], bytes(whole[:_PREFIX])
        head = np.array([kind.magic, kind.version, known.size], "<u4").tobytes()
        parts = [head, known.astype("<i4").tobytes(), data]
        size = sum(memoryview(part).nbytes for part in parts)
        seal = Seal(cache, kind, size, prefix=prefix).bytes_for(parts)
        try:
            files.write_whole(name, [*parts, seal])
        except FileNotFoundError as error:
            raise StateNotFoundError(f"{name} cannot be saved: its folder does not exist") from error
        except OSError as error:
            raise StateError(f"{name} could not be saved, and is as it was before: {error}") from error

    def _load(self, path: str | os.PathLike[str], kind: Kind) -> tuple[Seal, NDArray[np.int32], memoryview, str]:
        """A file's seal and tokens, what goes to llama.cpp, and what to call it."""
        name = checks.path("path", path)
        self._open()
        try:
            data = memoryview(files.read_whole(name))
        except FileNotFoundError as error:
            raise StateNotFoundError(f"{name} does not exist") from error
        except OSError as error:
            raise StateError(f"{name} could not be read: {error}") from error
        try:
            seal = Seal.read(name, data, [kind])
        except StateError as error:
            if int.from_bytes(data[:4], "little") in {Kind.CONTEXT_FILE.magic, Kind.SEQUENCE_FILE.magic}:
                raise StateError(
                    f"{error}. It begins as a file of llama.cpp's own, which says nothing of its model; "
                    "moebind.lib.llama_state_load_file loads those"
                ) from None
            raise
        n_tokens = int.from_bytes(data[_HEAD - 4 : _HEAD], "little")
        start = _HEAD + 4 * n_tokens
        tokens = np.frombuffer(data[_HEAD:start], "<i4").astype(np.int32)
        if kind is Kind.SEQUENCE_FILE:
            start -= _PREFIX  # its place is where the head or the tokens were
            data[start : start + _PREFIX] = seal.prefix
        return seal, tokens, data[start : seal.size], name


def _flags(flags: StateSeqFlags | int) -> StateSeqFlags:
    if isinstance(flags, (bool, float, str)):
        raise TypeError(f"flags is {flags!r}; it takes StateSeqFlags")
    number = checks.integer("flags", flags, 0, int(StateSeqFlags.PARTIAL_ONLY | StateSeqFlags.ON_DEVICE))
    return StateSeqFlags(number)


def _read(native: CData) -> bytearray:
    return _read_with(
        lambda: lib.llama_state_get_size(native),
        lambda buffer, size: lib.llama_state_get_data(native, buffer, size),
    )


def _read_seq(native: CData, seq: int, flags: StateSeqFlags) -> bytearray:
    return _read_with(
        lambda: lib.llama_state_seq_get_size_ext(native, seq, flags),
        lambda buffer, size: lib.llama_state_seq_get_data_ext(native, buffer, size, seq, flags),
    )


def _read_with(measure: Callable[[], int], read: Callable[[CData, int], int]) -> bytearray:
    lib.moebind_log_forget()
    try:
        size = measure()
        data = bytearray(size)
        with ffi.from_buffer("uint8_t[]", data) as buffer:
            written = read(buffer, size)
    except NativeError as error:
        raise StateError(f"llama.cpp could not write the state: {error.message}") from error
    if not size or written != size:
        raise StateError(f"llama.cpp could not write the state{log.recent_lines(3)}")
    return data


def _write(native: CData, data: Buffer) -> str | None:
    return _write_with(data, lambda buffer, size: lib.llama_state_set_data(native, buffer, size))


def _write_seq(native: CData, data: Buffer, seq: int, flags: StateSeqFlags) -> str | None:
    return _write_with(data, lambda buffer, size: lib.llama_state_seq_set_data_ext(native, buffer, size, seq, flags))


def _write_with(data: Buffer, write: Callable[[CData, int], int]) -> str | None:
    """Give llama.cpp a state; returns what it says when it does not take it."""
    lib.moebind_log_forget()
    try:
        with ffi.from_buffer("uint8_t[]", data) as buffer:
            size = len(buffer)
            return None if write(buffer, size) == size else log.recent_lines(3)
    except NativeError as error:
        return f"\n  llama.cpp: {error.message}"
