"""Batches: the tokens, or embeddings, of one ``decode``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, SupportsIndex, cast

import numpy as np

from moebind._core import checks
from moebind._core.native import CData, ffi, lib
from moebind._core.owner import OfThisProcess
from moebind.errors import BatchError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Batch"]

#: libllama accepts positions outside this range and then cannot reach their cells any more.
POS_MAX = checks.INT32_MAX - 1
#: 64 MiB of token ids; llama_batch_init would crash on much more.
CAPACITY_MAX = 2**24
SEQ_ID_MAX = int(lib.llama_max_parallel_sequences()) - 1


class Batch(OfThisProcess):
    """Tokens with their positions and sequences, to be processed in one call.

    The arrays belong to Python and are handed to llama.cpp without a copy.

    Parameters
    ----------
    n_tokens
        How many tokens it can hold.
    n_seq_max
        How many sequences one token can belong to.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    Uses ``struct llama_batch``.

    Examples
    --------
    >>> batch = Batch(512)
    >>> batch.add_sequence(model.str_to_token("Hello"), seq_id=0)
    >>> context.decode(batch)
    """

    def __init__(self, n_tokens: SupportsIndex, n_seq_max: SupportsIndex = 1) -> None:
        capacity = checks.integer("n_tokens", n_tokens, 1, CAPACITY_MAX)
        width = checks.integer("n_seq_max", n_seq_max, 1, SEQ_ID_MAX + 1)
        self._n_tokens = 0
        self._token = np.zeros(capacity, np.int32)
        self._embd: NDArray[np.float32] | None = None
        self._pos = np.zeros(capacity, np.int32)
        self._n_seq_id = np.ones(capacity, np.int32)
        self._seq_id = np.zeros((capacity, width), np.int32)
        self._logits = np.zeros(capacity, np.int8)
        self._automatic = False
        # llama_batch wants one pointer a token to its sequence ids: the addresses of our rows.
        first = self._seq_id.ctypes.data
        self._rows = first + np.arange(capacity, dtype=np.uintp) * np.uintp(self._seq_id.strides[0])
        self._native = ffi.new("struct llama_batch *")
        self._native.token = ffi.from_buffer("llama_token[]", self._token)
        self._native.pos = ffi.from_buffer("llama_pos[]", self._pos)
        self._native.n_seq_id = ffi.from_buffer("int32_t[]", self._n_seq_id)
        self._native.seq_id = ffi.cast("llama_seq_id **", ffi.from_buffer(self._rows))
        self._native.logits = ffi.from_buffer("int8_t[]", self._logits)

    @classmethod
    def get_one(cls, tokens: ArrayLike) -> Batch:
        """A batch that continues sequence 0: positions follow what is in the cache, the last token has logits.

        Parameters
        ----------
        tokens
            Token ids, shape ``(n,)``.

        Raises
        ------
        BatchError
            If there are none.

        Notes
        -----
        Does what ``llama_batch_get_one`` does.
        """
        array = checks.int32_array("tokens", tokens, 0)
        if array.size == 0:
            raise BatchError("tokens is empty; a batch takes at least one")
        batch = cls(array.size)
        batch.extend(array, 0, 0, False)
        batch._logits[array.size - 1] = 1
        batch._pos[:] = -1
        batch._automatic = True
        batch._native.pos = ffi.NULL
        return batch

    @classmethod
    def from_embeddings(
        cls,
        embeddings: ArrayLike,
        pos: ArrayLike = 0,
        seq_id: ArrayLike = 0,
        logits: ArrayLike | bool = False,
    ) -> Batch:
        """A batch of vectors instead of tokens.

        Parameters
        ----------
        embeddings
            float32, shape ``(n, n_embd_inp)`` of the model; copied if it is of another type or not contiguous.
        pos
            The first position, or one per row.
        seq_id
            The sequence, or one per row.
        logits
            Which rows to compute outputs for: all or none, or one flag per row.

        Raises
        ------
        BatchError
            If the array is empty or of another shape.
        """
        rows = checks.float32_array("embeddings", embeddings)
        if rows.ndim != 2 or 0 in rows.shape:
            raise BatchError(f"embeddings has the shape {rows.shape}; it takes (n, n_embd_inp), both at least 1")
        batch = cls(rows.shape[0])
        batch.extend(np.zeros(rows.shape[0], np.int32), pos, seq_id, logits)
        batch._embd = rows
        batch._native.token = ffi.NULL
        batch._native.embd = ffi.from_buffer("float[]", rows)
        return batch

    @property
    def n_tokens(self) -> int:
        """How many tokens it holds."""
        return self._n_tokens

    @property
    def capacity(self) -> int:
        """How many tokens it can hold."""
        return int(self._token.size)

    def __len__(self) -> int:
        return self._n_tokens

    @property
    def token(self) -> NDArray[np.int32]:
        """Token ids, int32 ``(n_tokens,)``: a writable view, valid for as long as you hold it."""
        return self._token[: self._n_tokens]

    @property
    def pos(self) -> NDArray[np.int32]:
        """Positions, int32 ``(n_tokens,)``: a writable view. -1 if libllama counts by itself (``get_one``)."""
        return self._pos[: self._n_tokens]

    @property
    def logits(self) -> NDArray[np.int8]:
        """Which tokens have outputs, int8 ``(n_tokens,)``, 0 or 1: a writable view."""
        return self._logits[: self._n_tokens]

    def clear(self) -> None:
        """Forget all tokens; the capacity stays."""
        self._must_be_tokens()
        self._n_tokens = 0

    def add(self, token: SupportsIndex, pos: SupportsIndex, seq_ids: Sequence[int] | int, logits: bool) -> None:
        """Add one token.

        Parameters
        ----------
        token
            Its id.
        pos
            Its position in its sequences.
        seq_ids
            The sequence, or sequences, that it belongs to.
        logits
            Whether to compute outputs for it.

        Raises
        ------
        BatchError
            If the batch is full, or there are more sequences than a token can belong to.
        """
        self._must_be_tokens()
        sequences = checks.int32_array("seq_ids", np.atleast_1d(seq_ids), 0, SEQ_ID_MAX)
        width = self._seq_id.shape[1]
        if not 1 <= sequences.size <= width:
            raise BatchError(
                f"seq_ids has {sequences.size} ids; this batch takes 1 to {width} a token: make it with more n_seq_max"
            )
        at = self._reserve(1)
        self._token[at] = checks.integer("token", token, 0)
        self._pos[at] = checks.integer("pos", pos, 0, POS_MAX)
        self._logits[at] = checks.boolean("logits", logits)
        self._n_seq_id[at] = sequences.size
        self._seq_id[at, : sequences.size] = sequences
        self._n_tokens += 1

    def add_sequence(
        self, tokens: ArrayLike, seq_id: SupportsIndex, logits_all: bool = False, pos: SupportsIndex = 0
    ) -> None:
        """Add the tokens of one sequence, with outputs for the last one, or for all.

        Parameters
        ----------
        tokens
            Token ids, shape ``(n,)``.
        seq_id
            The sequence.
        logits_all
            Compute outputs for every token.
        pos
            The first token's position.

        Raises
        ------
        BatchError
            If the tokens do not fit, or there are none.
        """
        array = checks.int32_array("tokens", tokens, 0)
        if array.size == 0:
            raise BatchError("tokens is empty; a sequence takes at least one")
        every = checks.boolean("logits_all", logits_all)
        self.extend(
            array, checks.integer("pos", pos, 0, POS_MAX), checks.integer("seq_id", seq_id, 0, SEQ_ID_MAX), every
        )
        self._logits[self._n_tokens - 1] = 1

    def extend(self, tokens: ArrayLike, pos: ArrayLike, seq_id: ArrayLike, logits: ArrayLike | bool) -> None:
        """Add many tokens at once, each belonging to one sequence.

        Parameters
        ----------
        tokens
            Token ids, shape ``(n,)``.
        pos
            The first token's position, from which the others count; or one per token, shape ``(n,)``.
        seq_id
            The sequence; or one per token, shape ``(n,)``.
        logits
            Whether to compute outputs; or one flag per token, shape ``(n,)``.

        Raises
        ------
        BatchError
            If the tokens do not fit, or the arrays differ in length.
        """
        self._must_be_tokens()
        array = checks.int32_array("tokens", tokens, 0)
        n = array.size
        positions = self._spread("pos", pos, n, POS_MAX)
        if np.ndim(pos) == 0:
            positions = positions + np.arange(n, dtype=np.int64)
            if n and positions[-1] > POS_MAX:
                raise BatchError(f"pos {int(positions[0])} and {n} tokens go beyond the last position, {POS_MAX}")
        sequences = self._spread("seq_id", seq_id, n, SEQ_ID_MAX)
        flags = np.asarray(logits)
        if flags.dtype != np.bool_:
            flags = self._spread("logits", flags, n, 1)
        elif flags.ndim > 1 or (flags.ndim == 1 and flags.size != n):
            raise BatchError(f"logits has the shape {flags.shape}; it takes one flag, or {n}")
        at = self._reserve(n)
        self._token[at : at + n] = array
        self._pos[at : at + n] = positions
        self._n_seq_id[at : at + n] = 1
        self._seq_id[at : at + n, 0] = sequences
        self._logits[at : at + n] = flags
        self._n_tokens += n

    def __repr__(self) -> str:
        return f"<Batch of {self._n_tokens} of {self.capacity} tokens>"

    def _must_be_tokens(self) -> None:
        if self._embd is not None or self._automatic:
            raise BatchError("this batch was made whole, by from_embeddings or get_one; make a Batch to add tokens to")

    def _reserve(self, n: int) -> int:
        if self._n_tokens + n > self.capacity:
            raise BatchError(
                f"{n} more tokens do not fit: the batch holds {self._n_tokens} of {self.capacity}; make a larger one"
            )
        return self._n_tokens

    @staticmethod
    def _spread(name: str, value: ArrayLike, n: int, high: int) -> NDArray[np.int32]:
        if np.ndim(value) == 0:
            return np.full(n, checks.integer(name, cast("SupportsIndex", value), 0, high), np.int32)
        array = checks.int32_array(name, value, 0, high)
        if array.size != n:
            raise BatchError(f"{name} has {array.size} entries for {n} tokens; it takes one number, or {n}")
        return array

    def _hold(self, tokens: list[int], positions: list[int], seq_ids: list[int], outputs: list[int]) -> None:
        """Have it hold these tokens, of a sequence each, which are known to be good."""
        self._n_tokens = n = len(tokens)
        self._token[:n], self._pos[:n], self._seq_id[:n, 0], self._logits[:n] = tokens, positions, seq_ids, outputs

    def _struct(self) -> CData:
        """The ``llama_batch`` with its tokens so far; it points into this object."""
        self._native.n_tokens = self._n_tokens
        return self._native[0]

    def _sequences(self) -> list[int]:
        """The sequences that its tokens belong to, in order."""
        n = self._n_tokens
        if self._seq_id.shape[1] == 1:
            return sorted(set(self._seq_id[:n, 0].tolist()))
        used = np.arange(self._seq_id.shape[1]) < self._n_seq_id[:n, None]
        return sorted(set(self._seq_id[:n][used].tolist()))

    def _first_sequences(self) -> NDArray[np.int32]:
        """The sequence of each token, the first one of those that have several."""
        return self._seq_id[: self._n_tokens, 0]

    def _shared(self) -> bool:
        """Whether a token belongs to several sequences."""
        return int(self._n_seq_id[: self._n_tokens].max()) > 1

    def _has_embeddings(self) -> bool:
        return self._embd is not None

    def _check_contents(self, n_vocab: int, width: int) -> None:
        """Raise unless a model of this vocabulary, which takes embeddings of this width, can take what is in it."""
        if self._embd is not None:
            if self._embd.shape[1] != width:
                raise BatchError(f"the embeddings have {self._embd.shape[1]} columns; this model takes {width}")
        elif int(self.token.max()) >= n_vocab or int(self.token.min()) < 0:
            raise BatchError(f"the batch has a token outside the vocabulary of {n_vocab}")

    def _form(self) -> tuple[bool, int]:
        """Whether entries have tokens, and how wide their embeddings are (0: none)."""
        return (True, 0) if self._embd is None else (False, int(self._embd.shape[1]))

    def n_outputs(self) -> int:
        """How many of the tokens have outputs."""
        return int(np.count_nonzero(self.logits))
