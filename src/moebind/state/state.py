"""Saved states: the part of ``Context`` that writes its sequences down and takes them back."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core import atomic_files, checks
from moebind._core.context_base import ContextBase
from moebind._core.native import CData, decoded, ffi, lib
from moebind._core.shown import shown
from moebind.enums import StateSeqFlags
from moebind.errors import StateError, StateNotFoundError
from moebind.state import transfer
from moebind.state.seal import MAGIC, SEAL_SIZE, CacheKind, Seal, StateKind
from moebind.state.seq_state import SeqState

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Buffer


__all__ = ["State"]

#: Bytes at the beginning of llama.cpp's files: magic, version, number of tokens.
_HEAD_SIZE = 12
#: Bytes that llama.cpp writes before a sequence in memory, and not in a file.
_PREFIX_SIZE = 8


class State(ContextBase):
    """A context's sequences, written down and taken back. :class:`moebind.Context` has it.

    What is saved is the cache: not logits, adapters or samplers. A state is refused with :class:`StateError` before
    anything is changed when it is damaged, of another model or of another kind of cache; when it turns out not to fit,
    the context gets back what it held.
    """

    _cache: CacheKind | None = None
    #: The last state of each sequence that was left on devices.
    _on_device: dict[int, object]

    # --- all sequences ---

    @property
    def state_size(self) -> int:
        """How many bytes :meth:`state_get` would return now (``llama_state_get_size``)."""
        with self._exclusive() as native:
            return int(lib.llama_state_get_size(native)) + SEAL_SIZE

    def state_get(self) -> bytes:
        """All sequences of the cache, as bytes.

        Returns
        -------
        bytes
            llama.cpp's data, and 80 bytes that say which model and kind of cache it belongs to.

        Raises
        ------
        StateError
            If llama.cpp cannot write it, or the model's file is gone or was changed.

        Notes
        -----
        Uses ``llama_state_get_data``.
        """
        with self._exclusive() as native:
            cache, data = self._cache_kind(native), transfer.read(native)
        return b"".join([data, Seal(cache, StateKind.CONTEXT, len(data)).bytes_for([data])])

    def state_set(self, data: Buffer) -> None:
        """Restore all sequences, in place of the present ones.

        Parameters
        ----------
        data
            From :meth:`state_get`: bytes, bytearray, memoryview or an array of bytes. It may come from another context
            of the same model, with its tensors elsewhere, if the kind of cache is the same: ``type_k``, ``type_v``,
            flash attention, ``n_seq_max`` (unless both have ``kv_unified``), and the position parameters.

        Raises
        ------
        StateError
            If the state is damaged, belongs to another model or kind of cache, or does not fit; the context is
            unchanged.

        Notes
        -----
        Uses ``llama_state_set_data``. A context that is not empty keeps a copy of what it holds during the call.
        """
        view = checks.octets("data", data)
        self._open()
        seal = Seal.read("data", view, [StateKind.CONTEXT])
        with self._exclusive() as native:
            self._check(native, "data", seal.cache)
            self._replace(native, "data", view[: seal.size])

    def state_save_file(self, path: str | os.PathLike[str], tokens: ArrayLike | None = None) -> None:
        """Save all sequences and a list of tokens to a file.

        The file is written under another name, flushed to disk and renamed: after a crash or with a full disk, the
        earlier file is still there.

        Parameters
        ----------
        path
            The file. Its folder must exist.
        tokens
            What sequence 0 holds, for whoever loads the file; None: what :meth:`generate` knows about it.

        Raises
        ------
        StateError
            If it cannot be written.
        StateNotFoundError
            If the folder does not exist.

        Notes
        -----
        All but the last 80 bytes is what ``llama_state_save_file`` writes.
        """
        self._save(path, tokens, 0, StateKind.CONTEXT_FILE)

    def state_load_file(self, path: str | os.PathLike[str]) -> NDArray[np.int32]:
        """Restore all sequences from a file of :meth:`state_save_file`, in place of the present ones.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        numpy.ndarray
            int32, ``(n_tokens,)``: the tokens that were saved with it. :meth:`generate` assumes that sequence 0 holds
            them, and does not decode them again.

        Raises
        ------
        StateNotFoundError
            If there is no such file.
        StateError
            As for :meth:`state_set`; the context is unchanged.
        """
        seal, tokens, body, name = self._load(path, StateKind.CONTEXT_FILE)
        with self._exclusive() as native:
            self._check(native, name, seal.cache)
            self._replace(native, name, body)
            self._history[0] = tokens.tolist()
        return np.array(tokens)

    # --- one sequence ---

    def state_seq_size(self, seq_id: SupportsIndex = 0, flags: StateSeqFlags | int = StateSeqFlags.NONE) -> int:
        """How many bytes of host memory :meth:`state_seq_get` would take now (``llama_state_seq_get_size_ext``)."""
        seq, chosen = self._seq("seq_id", seq_id), _flags(flags)
        with self._exclusive() as native:
            return int(lib.llama_state_seq_get_size_ext(native, seq, chosen)) + SEAL_SIZE

    def state_seq_get(self, seq_id: SupportsIndex = 0, flags: StateSeqFlags | int = StateSeqFlags.NONE) -> SeqState:
        """Save the state of one sequence.

        Parameters
        ----------
        seq_id
            The sequence.
        flags
            ``PARTIAL_ONLY``: only what cannot be rolled back in another way, sliding-window and recurrent state.
            ``ON_DEVICE``: leave the data on the devices. That is faster, but the state works only in this context, and
            only until the sequence is saved with this flag again.

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
        Uses ``llama_state_seq_get_data_ext``.
        """
        seq, chosen = self._seq("seq_id", seq_id), _flags(flags)
        ticket = None
        with self._exclusive() as native:
            cache = self._cache_kind(native)
            if chosen & StateSeqFlags.ON_DEVICE:
                self._make_room(native, seq)
                ticket = self._on_device[seq] = object()
            state = SeqState._of(cache, transfer.read_seq(native, seq, chosen), chosen, ticket)
            held = self._history.get(seq)
            state._tokens = None if held is None else np.array(held, np.int32)
        return state

    def state_seq_set(self, state: SeqState, seq_id: SupportsIndex = 0) -> None:
        """Restore one sequence, in place of what it holds.

        Parameters
        ----------
        state
            From :meth:`state_seq_get` or :meth:`SeqState.from_bytes`.
        seq_id
            The sequence to restore it as; it need not be the one that was saved.

        Raises
        ------
        StateError
            If the state belongs to another model or kind of cache (see :meth:`state_set`), was left on the devices of
            another context, is no longer there, or finds no room; the context is unchanged.

        Notes
        -----
        Uses ``llama_state_seq_set_data_ext``. If the sequence holds something, a copy is kept during the call.
        """
        if not isinstance(state, SeqState):
            raise TypeError(f"state is {shown(state)}; it takes a SeqState, from state_seq_get or SeqState.from_bytes")
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
            if state._tokens is not None and not state._flags & StateSeqFlags.PARTIAL_ONLY:
                self._history[seq] = state._tokens.tolist()

    def state_seq_save_file(
        self, path: str | os.PathLike[str], seq_id: SupportsIndex = 0, tokens: ArrayLike | None = None
    ) -> None:
        """Save one sequence and its tokens to a file, as :meth:`state_save_file` does.

        Parameters
        ----------
        path
            The file. Its folder must exist.
        seq_id
            The sequence.
        tokens
            What it holds; None: what :meth:`generate` knows about it.

        Raises
        ------
        StateError
            If it cannot be written.
        StateNotFoundError
            If the folder does not exist.

        Notes
        -----
        ``llama_state_seq_load_file`` can load the file: all but the last 80 bytes is what ``llama_state_seq_save_file``
        writes.
        """
        self._save(path, tokens, self._seq("seq_id", seq_id), StateKind.SEQUENCE_FILE)

    def state_seq_load_file(self, path: str | os.PathLike[str], seq_id: SupportsIndex = 0) -> NDArray[np.int32]:
        """Restore one sequence from a file of :meth:`state_seq_save_file`, in place of what it holds.

        Parameters
        ----------
        path
            The file.
        seq_id
            The sequence to restore it as; it need not be the one that was saved.

        Returns
        -------
        numpy.ndarray
            int32, ``(n_tokens,)``: the tokens that were saved with it. :meth:`generate` assumes that the sequence holds
            them, and does not decode them again.

        Raises
        ------
        StateNotFoundError
            If there is no such file.
        StateError
            As for :meth:`state_seq_set`; the context is unchanged.
        """
        seq = self._seq("seq_id", seq_id)
        seal, tokens, body, name = self._load(path, StateKind.SEQUENCE_FILE)
        with self._exclusive() as native:
            self._check(native, name, seal.cache)
            self._replace_seq(native, name, body, seq, StateSeqFlags.NONE)
            self._history[seq] = tokens.tolist()
        return np.array(tokens)

    # --- underneath; the caller holds the context ---

    def _cache_kind(self, native: CData) -> CacheKind:
        if self._cache is None:
            self._cache = CacheKind.of(self._model, self._cache_types, native)
        return self._cache

    def _check(self, native: CData, name: str, cache: CacheKind) -> None:
        if self._model._without_weights:
            raise StateError("the model was loaded with no_alloc: this context's cache has no memory for a state")
        if difference := cache.difference(self._cache_kind(native)):
            raise StateError(f"{name} does not go with this context: {difference}")

    def _make_room(self, native: CData, seq: int) -> None:
        """Check that a sequence can be left on the devices: llama.cpp ends the process when that does not work."""
        for name, kind in zip(("type_k", "type_v"), self._cache_types, strict=True):
            # It would copy as many elements as there are blocks, and lose the rest without a word.
            if lib.ggml_blck_size(kind) > 1 and not lib.llama_model_is_recurrent(self._model._open()):
                raise StateError(f"{name} is {kind.name}: ON_DEVICE takes caches of F32, F16 and BF16 only")
        self._on_device.pop(seq, None)
        lib.moebind_state_forget_on_device(native, seq)
        size = int(lib.llama_state_seq_get_size_ext(native, seq, StateSeqFlags.NONE))
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        model = self._model._open()
        for device in (lib.moebind_model_device(model, i) for i in range(lib.moebind_model_n_devices(model))):
            lib.ggml_backend_dev_memory(device, free, total)
            if total[0] and size > free[0]:
                where = decoded(lib.ggml_backend_dev_name(device))
                raise StateError(f"the sequence's {size} bytes do not fit {where}, which has {free[0]} free")

    def _replace(self, native: CData, name: str, data: Buffer) -> None:
        """Take all sequences, or keep those that there are."""
        architecture = self._model._architecture.encode()
        # llama.cpp makes room for a name of any length before it looks whether it is this one.
        if bytes(memoryview(data)[: 4 + len(architecture)]) != struct.pack("<I", len(architecture)) + architecture:
            raise StateError(f"{name} is damaged: it does not begin with the model's architecture")
        memory = lib.llama_get_memory(native)
        put_back = None
        if any(lib.llama_memory_seq_pos_max(memory, seq) >= 0 for seq in range(self._n_seq_max)):
            put_back = partial(transfer.write, native, transfer.read(native))
        self._exchange(
            name, partial(transfer.write, native, data), partial(lib.llama_memory_clear, memory, True), put_back
        )
        self._forget_outputs()

    def _replace_seq(self, native: CData, name: str, data: Buffer, seq: int, flags: StateSeqFlags) -> None:
        """Take one sequence, or keep what it holds."""
        memory = lib.llama_get_memory(native)
        model = self._model._open()
        recurrent = lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
        put_back = None
        if lib.llama_memory_seq_pos_max(memory, seq) >= 0:
            # A sequence that shares cells with others can only be brought back as it was together with them.
            if self._n_seq_max > 1 and (self._unified or recurrent):
                put_back = partial(transfer.write, native, transfer.read(native))
            else:
                held = transfer.read_seq(native, seq, StateSeqFlags.NONE)
                put_back = partial(transfer.write_seq, native, held, seq, StateSeqFlags.NONE)
        remove = partial(lib.llama_memory_seq_rm, memory, seq, -1, -1)

        def write() -> str | None:
            if not flags & StateSeqFlags.PARTIAL_ONLY:
                remove()  # llama.cpp does not, for an empty state
            return transfer.write_seq(native, data, seq, flags)

        self._exchange(name, write, remove, put_back, seq)

    def _exchange(
        self,
        name: str,
        write: Callable[[], str | None],
        remove: Callable[[], object],
        put_back: Callable[[], str | None] | None,
        replaced: int | None = None,
    ) -> None:
        """Write a state: a sequence's, or all. Whatever comes of it, the context holds the new one, or what it held."""
        known, owners = dict(self._history), list(self._owners)

        def keep(seq_ids: Iterable[int]) -> None:
            for seq in seq_ids:
                self._owners[seq] = owners[seq]
                if seq in known:
                    self._history[seq] = known[seq]

        everything = range(self._n_seq_max)
        self._changes(everything)
        try:
            failure = write()
        except BaseException:  # Ctrl-C, after llama.cpp was done
            remove()
            if put_back is None or put_back() is None:
                keep(everything)
            raise
        if failure is not None:
            remove()
            again = None if put_back is None else put_back()
            if again is not None:
                lib.llama_memory_clear(lib.llama_get_memory(self._open()), True)
                raise StateError(f"{name} does not fit, and what the context held could not be kept{failure}{again}")
            keep(everything)
            raise StateError(
                f"{name} does not fit this context, which holds what it held; one that is made as the state's was "
                f"(n_ctx, n_seq_max, kv_unified, type_k, type_v) has room for it{failure}"
            )
        if replaced is None:
            self._shares(everything)  # a state does not tell which of them do
        else:
            keep(seq for seq in everything if seq != replaced)

    # --- files ---

    def _save(self, path: str | os.PathLike[str], tokens: ArrayLike | None, seq: int, kind: StateKind) -> None:
        name = checks.path("path", path)
        given = None if tokens is None else checks.int32_array("tokens", tokens, 0, self._model.n_vocab - 1)
        with self._exclusive() as native:
            known = _text(self._history.get(seq, [])) if given is None else given
            cache = self._cache_kind(native)
            if kind is StateKind.CONTEXT_FILE:
                data, prefix = memoryview(transfer.read(native)), bytes(_PREFIX_SIZE)
            else:
                whole = memoryview(transfer.read_seq(native, seq, StateSeqFlags.NONE))
                data, prefix = whole[_PREFIX_SIZE:], bytes(whole[:_PREFIX_SIZE])
        head = np.array([kind.magic, kind.version, known.size], "<u4").tobytes()
        parts: list[Buffer] = [head, known.astype("<i4").tobytes(), data]
        size = sum(memoryview(part).nbytes for part in parts)
        seal = Seal(cache, kind, size, prefix=prefix).bytes_for(parts)
        try:
            atomic_files.write_whole(name, [*parts, seal])
        except FileNotFoundError as error:
            raise StateNotFoundError(f"{name} cannot be saved: its folder does not exist") from error
        except OSError as error:
            raise StateError(f"{name} could not be saved, and is as it was before: {error}") from error

    def _load(self, path: str | os.PathLike[str], kind: StateKind) -> tuple[Seal, NDArray[np.int32], memoryview, str]:
        """Read a file: its seal, its tokens, the data for llama.cpp, and its name for messages."""
        name = checks.path("path", path)
        self._open()
        try:
            data = memoryview(atomic_files.read_whole(name))
        except FileNotFoundError as error:
            raise StateNotFoundError(f"{name} does not exist") from error
        except OSError as error:
            raise StateError(f"{name} could not be read: {error}") from error
        try:
            seal = Seal.read(name, data, [kind])
        except StateError as error:
            loads = {
                StateKind.CONTEXT_FILE.magic: "llama_state_load_file",
                StateKind.SEQUENCE_FILE.magic: "llama_state_seq_load_file",
            }.get(int.from_bytes(data[:4], "little"))
            if loads is None or data[-len(MAGIC) :] == MAGIC:  # ours begin like llama.cpp's own
                raise
            raise StateError(
                f"{error}. It begins as a file of llama.cpp's own, which says nothing of its model; "
                f"moebind.lib.{loads} loads those"
            ) from None
        n_tokens = int.from_bytes(data[_HEAD_SIZE - 4 : _HEAD_SIZE], "little")
        start = _HEAD_SIZE + 4 * n_tokens
        if start > seal.size:
            raise StateError(f"{name} is damaged: it has no room for {n_tokens} tokens")
        tokens = np.frombuffer(data[_HEAD_SIZE:start], "<i4").astype(np.int32)
        if kind is StateKind.SEQUENCE_FILE:
            start -= _PREFIX_SIZE  # its place is where the head or the tokens were
            data[start : start + _PREFIX_SIZE] = seal.prefix
        return seal, tokens, data[start : seal.size], name


def _text(history: list[int]) -> NDArray[np.int32]:
    """The tokens that a sequence begins with, up to a picture or sound, which files cannot hold."""
    tokens = np.array(history, np.int32)
    return tokens[: int(np.argmax(tokens < 0))] if (tokens < 0).any() else tokens


def _flags(flags: StateSeqFlags | int) -> StateSeqFlags:
    if isinstance(flags, (bool, float, str)):
        raise TypeError(f"flags is {shown(flags)}; it takes StateSeqFlags")
    number = checks.integer("flags", flags, 0, int(StateSeqFlags.PARTIAL_ONLY | StateSeqFlags.ON_DEVICE))
    return StateSeqFlags(number)
