"""The seal of a saved state: of which model it is, of which kind of cache, and whether all of it is there.

llama.cpp checks little: a state of another model of equal shape is taken, and one that turns out to be wrong half-way
leaves a cache that is empty or half full. So the bytes that llama.cpp wrote are followed by a seal of fixed size, which
is checked before llama.cpp sees them. It comes last since llama.cpp's functions for sequences and for bytes do not mind
what follows the data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING

from moebind._core.native import CData, ffi, lib
from moebind.enums import GgmlType, StateSeqFlags
from moebind.errors import StateError
from moebind.state import fingerprint

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from moebind._core.model_base import ModelBase

__all__ = ["MAGIC", "SEAL_SIZE", "CacheKind", "Seal", "StateKind"]

MAGIC = b"moebind\x01"
_CHECKSUM = 4
#: Model, positions, prefix, size; kind, flags, key type, value type, parts, transposed, version; then checksum, magic.
_FIELDS = struct.Struct("<16s8s8sQIIiiIII")
SEAL_SIZE = _FIELDS.size + _CHECKSUM + len(MAGIC)


class StateKind(IntEnum):
    """The kind of state that a seal belongs to."""

    CONTEXT = 1
    SEQUENCE = 2
    CONTEXT_FILE = 3
    SEQUENCE_FILE = 4

    @property
    def magic(self) -> int:
        """The number that llama.cpp's file begins with."""
        return int(lib.LLAMA_SESSION_MAGIC if self is StateKind.CONTEXT_FILE else lib.LLAMA_STATE_SEQ_MAGIC)

    @property
    def version(self) -> int:
        """The version of llama.cpp's format."""
        whole = self in {StateKind.CONTEXT, StateKind.CONTEXT_FILE}
        return int(lib.LLAMA_SESSION_VERSION if whole else lib.LLAMA_STATE_SEQ_VERSION)


#: What each kind is, and what takes it.
_CONTENT = {
    StateKind.CONTEXT: "a whole context's state, as state_get gives it. Use state_set",
    StateKind.SEQUENCE: "one sequence's state, as bytes of a SeqState. Use state_seq_set(SeqState.from_bytes(data))",
    StateKind.CONTEXT_FILE: "a file with a whole context's state. Use state_load_file(path)",
    StateKind.SEQUENCE_FILE: "a file with one sequence's state. Use state_seq_load_file(path)",
}


@dataclass(frozen=True)
class CacheKind:
    """The properties that must be equal in the context that a state was taken from and the one that takes it."""

    model: bytes
    positions: bytes
    type_k: int
    type_v: int
    n_stream: int
    v_trans: int

    @staticmethod
    def of(model: ModelBase, types: tuple[GgmlType, GgmlType], native: CData) -> CacheKind:
        """The cache of a context of this model, with keys and values of these types."""
        layout = ffi.new("struct moebind_state_layout *")
        lib.moebind_state_layout_of(native, layout)
        laid_out = (layout.rope_long, layout.ctx_type, layout.rope_scaling_type, layout.n_ctx_orig_yarn, *layout.rope)
        import hashlib  # rarely needed, and slow to import

        positions = hashlib.blake2b(repr(laid_out).encode(), digest_size=8).digest()
        cache = CacheKind(
            fingerprint.fingerprint(model),
            positions,
            int(types[0]),
            int(types[1]),
            int(layout.n_stream),
            int(layout.v_trans),
        )
        # A recurrent state has neither keys nor values, and is in one part.
        recurrent = lib.llama_model_is_recurrent(model._open())
        return replace(cache, type_k=0, type_v=0, n_stream=1, v_trans=0) if recurrent else cache

    def difference(self, other: CacheKind) -> str | None:
        """Why the state of a context like this cannot be read by one like the other; None: it can."""
        names = {field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)}
        if "model" in names:
            return "it is of another model"
        if "positions" in names:
            return "positions are in its keys in another way (rope_*, yarn_*, or an n_ctx beyond the trained one)"
        for name in ("type_k", "type_v"):
            if name in names:
                theirs, ours = GgmlType(getattr(self, name)).name, GgmlType(getattr(other, name)).name
                return f"its {name} is {theirs}, this context's {ours}"
        if "n_stream" in names:
            return (
                f"its cache has {self.n_stream} parts, this context's {other.n_stream}: make the context with the same "
                "n_seq_max, or both with kv_unified=True"
            )
        if "v_trans" in names:
            return (
                f"it was saved with{'out' if self.v_trans else ''} flash attention, and this context is "
                f"with{'out' if other.v_trans else ''}: set flash_attn_type"
            )
        return None


@dataclass(frozen=True)
class Seal:
    """The bytes after a state, which tell what it is.

    Attributes
    ----------
    cache : CacheKind
        Which contexts can take it.
    kind : StateKind
        The kind of state that it belongs to.
    flags : StateSeqFlags
        How a sequence's state was taken.
    size : int
        Bytes that are sealed, without the seal itself.
    prefix : bytes
        Of a sequence's file: what llama.cpp writes before the state in memory, but not in a file.
    """

    cache: CacheKind
    kind: StateKind
    size: int
    flags: StateSeqFlags = StateSeqFlags.NONE
    prefix: bytes = bytes(8)

    def _packed(self) -> bytes:
        model, positions, *rest = astuple(self.cache)
        sizes = (self.prefix, self.size, int(self.kind), int(self.flags), *rest, self.kind.version)
        return _FIELDS.pack(model, positions, *sizes)

    def bytes_for(self, parts: Sequence[Buffer]) -> bytes:
        """The seal as it is written after these parts."""
        packed = self._packed()
        return packed + _checksum([*parts, packed]) + MAGIC

    @staticmethod
    def read(name: str, data: memoryview, kinds: Sequence[StateKind]) -> Seal:
        """Read and check the seal at the end of data that may be anything.

        Parameters
        ----------
        name
            The data's name in messages.
        data
            All of it, seal included.
        kinds
            The kinds of state that are allowed.

        Raises
        ------
        StateError
            If there is none, it belongs to another kind of state, or anything was changed or is missing.
        """
        tail = bytes(data[-SEAL_SIZE:])
        if len(tail) < SEAL_SIZE or not tail.endswith(MAGIC):
            raise StateError(
                f"{name} ({len(data)} bytes) is not a whole state that moebind saved: it is cut short, was changed, or "
                "is something else"
            )
        packed = tail[: _FIELDS.size]
        model, positions, prefix, size, kind, flags, *rest, version = _FIELDS.unpack(packed)
        if size + SEAL_SIZE != len(data):
            raise StateError(f"{name} has {len(data)} bytes instead of {size + SEAL_SIZE}: a part of it is missing")
        body = data[:size]
        if _checksum([body, packed]) != tail[_FIELDS.size : _FIELDS.size + _CHECKSUM]:
            raise StateError(f"{name} is damaged: its checksum does not match")
        if kind not in set(kinds):
            raise StateError(f"{name} is {_CONTENT.get(kind, 'of a kind that only a newer moebind knows')}")
        if version != StateKind(kind).version:
            raise StateError(
                f"{name} is of version {version} of llama.cpp's format; this one reads {StateKind(kind).version}"
            )
        return Seal(CacheKind(model, positions, *rest), StateKind(kind), size, StateSeqFlags(flags), prefix)


def _checksum(parts: Sequence[Buffer]) -> bytes:
    """CRC-32 of all parts: it finds accidents, and is so fast that nobody waits for it."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value.to_bytes(_CHECKSUM, "little")
