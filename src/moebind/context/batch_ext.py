"""Batches of llama.cpp's extended kind: entries that are tokens or embeddings, some with a hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.context_base import ContextBase
from moebind._core.native import ffi, lib, own
from moebind._core.owner import CallLock, Owner
from moebind._core.shown import shown
from moebind.context.batch import POS_MAX
from moebind.enums import RopeType
from moebind.errors import BatchError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


__all__ = ["BatchExt"]

#: Positions of an embedding in models with several (M-RoPE).
_SECTIONS = {RopeType.MROPE: 4, RopeType.IMROPE: 4}


class BatchExt(Owner):
    """A batch whose entries are tokens, embeddings, or both, and can have hidden states too, for one context.

    It can hold what a :class:`Batch` cannot: the hidden states that a context for multi-token prediction takes along
    with tokens, and embeddings with several positions each (M-RoPE), for vision models. For anything else a ``Batch``
    is simpler, and faster.

    Parameters
    ----------
    context
        The context that is to process it; it holds at most ``n_batch`` entries.

    Notes
    -----
    Uses ``llama_batch_ext_init`` and ``llama_batch_ext_free``, which are experimental in llama.cpp.
    Process it with :meth:`Context.process`.

    Examples
    --------
    >>> batch = BatchExt(context)
    >>> for pos, token in enumerate(tokens):
    ...     batch.add(0, pos, token=token, output=pos == len(tokens) - 1)
    >>> context.process(batch)
    """

    def __init__(self, context: ContextBase) -> None:
        if not isinstance(context, ContextBase):
            raise TypeError(f"context is {shown(context)}; it takes the Context that will process the batch")
        with context._exclusive() as native:
            model = context._model
            self._context = context
            self._capacity = context.n_batch
            self._n_vocab = model.n_vocab
            self._n_positions = _SECTIONS.get(RopeType(lib.llama_model_rope_type(model._open())), 1)
            self._lock = CallLock()
            self._forget()
            self._pointer = own(lib.own_llama_batch_ext_init, native, holds=[native])

    def _forget(self) -> None:
        self._pos: list[int] = []
        self._seqs: list[tuple[int, ...]] = []
        self._outputs: list[bool] = []
        #: Whether entries have tokens, and how wide their embeddings and states are (0: none): the same for all.
        self._contents: tuple[bool, int, int] | None = None

    def __len__(self) -> int:
        return self.n_tokens

    @property
    def n_tokens(self) -> int:
        """How many entries it holds."""
        self._open()
        return len(self._pos)

    @property
    def capacity(self) -> int:
        """How many entries it can hold: the context's ``n_batch``."""
        return self._capacity

    def clear(self) -> None:
        """Forget all entries (``llama_batch_ext_clear``)."""
        with self._lock.held():
            lib.llama_batch_ext_clear(self._open())
            self._forget()

    def add(
        self,
        seq_ids: Sequence[int] | SupportsIndex,
        pos: Sequence[int] | SupportsIndex,
        *,
        token: SupportsIndex | None = None,
        embedding: ArrayLike | None = None,
        state: ArrayLike | None = None,
        output: bool = False,
    ) -> int:
        """Add one entry.

        Parameters
        ----------
        seq_ids
            The sequence, or sequences, that it belongs to.
        pos
            Its position; for an embedding in a model with M-RoPE, its four positions.
        token, embedding
            At least one of the two, and the same kind for all entries of a batch. An embedding is float32,
            ``(n_embd,)``, or rows that count as one.
        state
            The hidden state of the model before, for a context with ``ContextType.MTP``: float32 ``(n_embd_out,)``, as
            ``n_embd_out`` of the model says, or rows that count as one. All entries of a batch have one, or none.
        output
            Whether to compute outputs for it.

        Returns
        -------
        int
            Its index in the batch, for :meth:`Context.get_logits_ith`.

        Raises
        ------
        BatchError
            If the batch is full, the entry is of another kind than those before, or llama.cpp does not take its width.

        Notes
        -----
        Uses ``llama_batch_ext_add`` or ``llama_batch_ext_add_token``, and ``llama_batch_ext_set_embd_token``,
        ``llama_batch_ext_set_embd_state``, ``llama_batch_ext_add_seq``, ``llama_batch_ext_set_pos`` and
        ``llama_batch_ext_set_output_logits``.
        """
        sequences = checks.int32_array("seq_ids", np.atleast_1d(seq_ids), 0, self._context.n_seq_max - 1).tolist()  # type: ignore[arg-type]
        if not sequences:
            raise BatchError("seq_ids is empty; an entry belongs to at least one sequence")
        number = None if token is None else checks.integer("token", token, 0, self._n_vocab - 1)
        vector = None if embedding is None else _vector("embedding", embedding)
        hidden = None if state is None else _vector("state", state)
        wanted = checks.boolean("output", output)
        contents = number is not None, 0 if vector is None else vector.size, 0 if hidden is None else hidden.size
        if number is None and vector is None:
            raise BatchError("an entry takes a token, an embedding, or both")
        positions = checks.int32_array("pos", np.atleast_1d(pos), 0, POS_MAX)  # type: ignore[arg-type]
        expected = self._n_positions if number is None else 1
        if positions.size != expected:
            raise BatchError(f"pos has {positions.size} positions; this entry takes {expected}")
        with self._lock.held():
            native = self._open()
            if len(self._pos) >= self._capacity:
                raise BatchError(f"the batch is full: it holds {self._capacity} entries (n_batch)")
            if self._contents is not None and contents != self._contents:
                raise BatchError(
                    "all entries of a batch have the same: tokens, embeddings of one width, or both, and states or none"
                )
            # llama.cpp keeps an entry of which it refuses a part: the width is all that is left to refuse.
            if number is None:
                at = lib.llama_batch_ext_add(native, sequences[0])
            else:
                at = lib.llama_batch_ext_add_token(native, sequences[0], number)
            for name, numbers, set_part in (
                ("an embedding", vector, lib.llama_batch_ext_set_embd_token),
                ("a state", hidden, lib.llama_batch_ext_set_embd_state),
            ):
                if numbers is None:
                    continue
                rows = {"data": ffi.from_buffer("float[]", numbers), "n_rows": 1, "n_embd": numbers.size}
                if at < 0 or not set_part(native, at, rows):
                    lib.llama_batch_ext_clear(native)
                    self._forget()
                    raise BatchError(
                        f"llama.cpp does not take {name} of {numbers.size} numbers for this context; the batch is "
                        "empty now"
                    )
            for seq in sequences[1:]:
                lib.llama_batch_ext_add_seq(native, at, seq)
            lib.llama_batch_ext_set_pos(native, at, ffi.from_buffer("llama_pos[]", positions))
            lib.llama_batch_ext_set_output_logits(native, at, wanted)
            self._contents = contents
            self._pos.append(int(positions[0]))
            self._seqs.append(tuple(sequences))
            self._outputs.append(wanted)
            return int(at)

    def __repr__(self) -> str:
        return "<BatchExt, closed>" if self.closed else f"<BatchExt of {len(self._pos)} of {self._capacity} entries>"

    # --- what Context asks of any batch ---

    _automatic = False

    @property
    def pos(self) -> NDArray[np.int32]:
        """The first position of each entry, int32 ``(n_tokens,)``: a copy."""
        return np.array(self._pos, np.int32)

    @property
    def logits(self) -> NDArray[np.int8]:
        """Which entries have outputs, int8 ``(n_tokens,)``, 0 or 1: a copy."""
        return np.array(self._outputs, np.int8)

    def n_outputs(self) -> int:
        """How many of the entries have outputs."""
        return sum(self._outputs)

    def _sequences(self) -> list[int]:
        return sorted({seq for several in self._seqs for seq in several})

    def _first_sequences(self) -> NDArray[np.int32]:
        return np.array([several[0] for several in self._seqs], np.int32)

    def _shared(self) -> bool:
        return any(len(set(several)) > 1 for several in self._seqs)

    def _has_embeddings(self) -> bool:
        return self._contents is not None and self._contents[1] > 0

    def _has_states(self) -> bool:
        return self._contents is not None and self._contents[2] > 0

    def _form(self) -> tuple[bool, int]:
        return (False, 0) if self._contents is None else self._contents[:2]

    def _check_contents(self, n_vocab: int, width: int) -> None:
        """Nothing is left to check: the model is that of the context, and llama.cpp looks at widths."""


def _vector(name: str, numbers: ArrayLike) -> NDArray[np.float32]:
    try:
        array = np.asarray(numbers)
    except ValueError as error:
        raise BatchError(f"{name} cannot be made into an array: {str(error)[:200]}") from None
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} has dtype {array.dtype}; it takes numbers")
    if array.ndim not in {1, 2} or not array.size:
        raise BatchError(f"{name} has the shape {array.shape}; it takes one row of numbers, or rows")
    return np.ascontiguousarray(array.reshape(-1), np.float32)
