"""One sequence of a context, written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moebind._core import checks
from moebind.enums import StateSeqFlags
from moebind.errors import StateError
from moebind.state.seal import SEAL_SIZE, CacheKind, Seal, StateKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer, Self

__all__ = ["SeqState"]


class SeqState:
    """The state of one sequence, from :meth:`Context.state_seq_get`, for any context of the same model.

    ``bytes(state)`` is all of it, to be kept; :meth:`from_bytes` restores it. It can be pickled. Neither works for a
    state that was saved with ``ON_DEVICE``, whose data is in the memory of the context's devices.

    Examples
    --------
    >>> state = context.state_seq_get(0)
    >>> context.state_seq_set(SeqState.from_bytes(bytes(state)), 1)
    """

    __slots__ = ("_cache", "_data", "_flags", "_ticket", "_tokens")
    _cache: CacheKind
    _data: Buffer
    _flags: StateSeqFlags
    #: With ON_DEVICE: the object by which the context knows it.
    _ticket: object
    #: The sequence's tokens, as far as generate() knew them.
    _tokens: NDArray[np.int32] | None

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("states are taken with Context.state_seq_get(seq_id), or made with SeqState.from_bytes(data)")

    @classmethod
    def _of(cls, cache: CacheKind, data: Buffer, flags: StateSeqFlags, ticket: object = None) -> Self:
        state = cls.__new__(cls)
        state._cache, state._data, state._flags, state._ticket, state._tokens = cache, data, flags, ticket, None
        return state

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Make a state from ``bytes(state)``.

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
        seal = Seal.read("data", view, [StateKind.SEQUENCE])
        return cls._of(seal.cache, bytes(view[: seal.size]), seal.flags)

    @property
    def flags(self) -> StateSeqFlags:
        """How it was saved."""
        return self._flags

    @property
    def nbytes(self) -> int:
        """Its bytes in host memory: the length of ``bytes(state)``, if that is available."""
        return memoryview(self._data).nbytes + SEAL_SIZE

    def __bytes__(self) -> bytes:
        if self._flags & StateSeqFlags.ON_DEVICE:
            raise StateError("a state that was taken with ON_DEVICE is in its context's devices: take one without")
        size = memoryview(self._data).nbytes
        return bytes(self._data) + Seal(self._cache, StateKind.SEQUENCE, size, self._flags).bytes_for([self._data])

    def __reduce__(self) -> tuple[Callable[[Buffer], SeqState], tuple[bytes]]:
        return SeqState.from_bytes, (bytes(self),)

    def __repr__(self) -> str:
        return f"<SeqState, {self.nbytes} bytes, flags={self._flags!r}>"
