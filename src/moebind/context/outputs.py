"""Logits and embeddings: the part of ``Context`` that reads what the last batch left."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np

from moebind._core import checks
from moebind._core.native import CData, ffi, keeping, lib, own
from moebind.enums import PoolingType
from moebind.errors import EmbeddingsError, SamplerError
from moebind.sampling.candidates import TokenDataArray
from moebind.sampling.sampler import SampledContext, Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Outputs"]


class _Buffer:
    """The owner of an output buffer that its context has replaced: the arrays that show the buffer hold it."""

    __slots__ = ("__weakref__", "buffer")
    buffer: CData | None

    def __init__(self) -> None:
        self.buffer = None


class Outputs(SampledContext):
    """The part of a context that gives the outputs of the last batch. :class:`moebind.Context` has it."""

    #: How many outputs the last batch had.
    _n_outputs = 0
    #: Which of its tokens had them; None: its only token.
    _flags: NDArray[np.int8] | None = None
    #: Whether logits were computed; encoders give embeddings only.
    _has_logits = True
    #: Chains that run in the graph, by sequence; the logits of those sequences are not copied.
    _attached: dict[int, Sampler]
    #: The sequence of each token of the last batch, where there are such chains.
    _output_seqs: NDArray[np.int32] | None = None
    #: Whether every token has an embedding.
    _embeddings = False
    #: How many outputs libllama's buffer has room for.
    _outputs_reserved = 0
    #: The model's suppressed tokens; None where it has none.
    _suppress: NDArray[np.int32] | None = None
    #: The object that the arrays which show the buffer hold.
    _shown: weakref.ref[_Buffer] | None = None

    def _forget_outputs(self) -> None:
        self._n_outputs = 0
        self._flags = None
        self._has_logits = True
        self._output_seqs = None

    def _release_outputs(self, native: CData) -> None:
        """Leave the output buffer to the arrays that show it, before libllama makes itself a larger one."""
        outputs = None if self._shown is None else self._shown()
        if outputs is not None:
            outputs.buffer = own(lib.own_moebind_take_output, native, holds=[native])
            self._shown = None

    @overload
    def _view(self, pointer: CData, shape: tuple[int, ...]) -> NDArray[np.float32]: ...

    @overload
    def _view(self, pointer: CData, shape: tuple[int, ...], dtype: type[np.int32]) -> NDArray[np.int32]: ...

    def _view(
        self, pointer: CData, shape: tuple[int, ...], dtype: type[np.float32 | np.int32] = np.float32
    ) -> NDArray[np.float32] | NDArray[np.int32]:
        """A read-only array over libllama's memory, which stays as long as the array does."""
        outputs = None if self._shown is None else self._shown()
        if outputs is None:
            outputs = _Buffer()
            self._shown = weakref.ref(outputs)
        size = math.prod(shape)
        kept = keeping(pointer, self._open(), outputs)
        array: Any = np.frombuffer(ffi.buffer(kept, 4 * size), dtype).reshape(shape)
        array.flags.writeable = False
        viewed: NDArray[np.float32] | NDArray[np.int32] = array
        return viewed

    def _likeliest(self, native: CData, at: int = -1) -> int:
        """The token with the highest logit, after one of the outputs. The caller holds the context.

        Where only the maximum counts, it is found in the logits themselves; libllama would build and scan an array of
        candidates.
        """
        self._logits_row(at)
        with self._suppressing(native, at):
            logits = lib.llama_get_logits_ith(native, at)
            return int(lib.moebind_likeliest(logits, self._model._n_vocab))

    @contextmanager
    def _suppressing(self, native: CData, at: int) -> Iterator[None]:
        """Make the model's suppressed tokens impossible in an output, for as long as somebody chooses from it.

        llama.cpp's programs give them a bias of -inf. The caller holds the context; views show them again afterwards.
        """
        pointer = lib.llama_get_logits_ith(native, at)
        if self._suppress is None or not pointer:
            yield
            return
        row = np.frombuffer(ffi.buffer(pointer, 4 * self._model._n_vocab), np.float32)
        before = row[self._suppress]
        row[self._suppress] = -np.inf
        try:
            yield
        finally:
            row[self._suppress] = before

    def _sample_with(self, sampler: Sampler, native: CData, at: int = -1) -> int:
        """Choose a token from one of the outputs, and accept it. The caller holds the context."""
        self._sampling_row(at)
        if sampler._attached and self._attached.get(self._sequence_of_output(at)) is not sampler:
            raise SamplerError(
                f"{sampler!r} runs, or ran, in the graph of a context for another sequence: sample with a clone() of it"
            )
        with sampler._lock.held(), self._suppressing(native, at) if self._suppress is not None else nullcontext():
            if sampler._is_checked:
                return sampler._sample_checked(self._logits(native, at))
            return sampler._sample_natively(native, at)

    def _output_row(self, i: int) -> None:
        """Raise unless the last batch has an output there."""
        if i < 0:
            if -i > self._n_outputs:
                raise IndexError(f"i is {i}; the last batch has {self._n_outputs} outputs{self._hint()}")
            return
        if self._n_outputs and self._embeddings:
            found = self._flags is not None and i < self._flags.size
        elif self._flags is None:
            found = self._n_outputs > 0 and i == 0
        else:
            found = i < self._flags.size and bool(self._flags[i])
        if not found or not self._n_outputs:
            raise IndexError(f"i is {i}; the last batch asked for no output there{self._hint()}")

    def _sampling_row(self, i: int) -> None:
        """Raise unless a sampler can choose there, from logits or from what a backend sampler left of them."""
        self._output_row(i)
        if not self._has_logits:
            raise IndexError("this model's encoder gives no logits: read embeddings, or decode")

    def _logits_row(self, i: int) -> None:
        """Raise unless the last batch has logits there."""
        self._sampling_row(i)
        if self._attached:
            seq = self._sequence_of_output(i)
            if seq in self._attached:
                raise IndexError(
                    f"the logits of sequence {seq} stayed where its backend sampler ran: read sampled_logits_ith"
                )

    def _sequence_of_output(self, i: int) -> int:
        """The sequence of an output that there is; -1 where no chain runs."""
        seqs = self._output_seqs
        if seqs is None:
            return -1
        if i < 0 and self._flags is not None and not self._embeddings:
            seqs = seqs[self._flags != 0]
        return int(seqs[i])

    def _hint(self) -> str:
        return "" if self._n_outputs else ": decode a batch that asks for logits first"

    def get_logits(self) -> NDArray[np.float32]:
        """The logits of all outputs of the last batch.

        Returns
        -------
        numpy.ndarray
            float32, ``(n_outputs, n_vocab)``, rows in the order of the batch: a read-only view without a copy. Its
            memory stays valid as long as the array; the next ``decode`` overwrites the numbers.

        Raises
        ------
        IndexError
            If there are none, or a backend sampler kept some of them.

        Notes
        -----
        Uses ``llama_get_logits``.
        """
        with self._exclusive() as native:
            if self._attached:
                for i in range(-self._n_outputs, 0):
                    self._logits_row(i)
            self._logits_row(-1)
            return self._view(lib.llama_get_logits(native), (self._n_outputs, self._model.n_vocab))

    def get_logits_ith(self, i: SupportsIndex) -> NDArray[np.float32]:
        """The logits of one token of the last batch.

        Parameters
        ----------
        i
            Its index in the batch; negative numbers count outputs from the end.

        Returns
        -------
        numpy.ndarray
            float32, ``(n_vocab,)``: a read-only view, like that of :meth:`get_logits`.

        Raises
        ------
        IndexError
            If the batch asked for no output there.

        Notes
        -----
        Uses ``llama_get_logits_ith``.
        """
        at = checks.integer("i", i, -checks.INT32_MAX)
        with self._exclusive() as native:
            return self._logits(native, at)

    def _logits(self, native: CData, at: int) -> NDArray[np.float32]:
        self._logits_row(at)
        return self._view(lib.llama_get_logits_ith(native, at), (self._model._n_vocab,))

    def get_embeddings(self) -> NDArray[np.float32]:
        """The embeddings of all outputs of the last batch, token by token.

        Returns
        -------
        numpy.ndarray
            float32, ``(n_outputs, n_embd_out)``, rows in the order of the batch: a read-only view, as
            :meth:`get_logits` gives.

        Raises
        ------
        EmbeddingsError
            If the context computes none, or pools them.
        IndexError
            If there are none.

        Notes
        -----
        Uses ``llama_get_embeddings``.
        """
        with self._exclusive() as native:
            self._must_have_token_embeddings()
            self._output_row(-1)
            width = lib.llama_model_n_embd_out(self._model._open())
            return self._view(lib.llama_get_embeddings(native), (self._n_outputs, width))

    def embeddings_ith(self, i: SupportsIndex) -> NDArray[np.float32]:
        """The embedding of one token of the last batch.

        Parameters
        ----------
        i
            Its index in the batch; negative numbers count outputs from the end.

        Returns
        -------
        numpy.ndarray
            float32, ``(n_embd_out,)``: a read-only view, like that of :meth:`get_logits`.

        Raises
        ------
        EmbeddingsError
            If the context computes none, or pools them.
        IndexError
            If the batch asked for no output there.

        Notes
        -----
        Uses ``llama_get_embeddings_ith``.
        """
        at = checks.integer("i", i, -checks.INT32_MAX)
        with self._exclusive() as native:
            self._must_have_token_embeddings()
            self._output_row(at)
            width = lib.llama_model_n_embd_out(self._model._open())
            return self._view(lib.llama_get_embeddings_ith(native, at), (width,))

    def embeddings_seq_ith(self, seq_id: SupportsIndex) -> NDArray[np.float32]:
        """The pooled embedding of a sequence of the last batch.

        Parameters
        ----------
        seq_id
            The sequence.

        Returns
        -------
        numpy.ndarray
            float32, a copy: ``(n_embd_out,)``, or ``(n_cls_out,)`` scores with ``PoolingType.RANK``.

        Raises
        ------
        EmbeddingsError
            If the context computes none, does not pool them, or the batch had no such sequence.

        Notes
        -----
        Uses ``llama_get_embeddings_seq``.
        """
        seq = self._seq("seq_id", seq_id)
        with self._exclusive() as native:
            self._must_have_embeddings()
            pooling = self.pooling_type
            if pooling == PoolingType.NONE:
                raise EmbeddingsError("this context does not pool embeddings: use embeddings_ith, or set pooling_type")
            pointer = lib.llama_get_embeddings_seq(native, seq)
            if not pointer:
                raise EmbeddingsError(f"the last batch had no sequence {seq}")
            rank = pooling == PoolingType.RANK
            size = (lib.llama_model_n_cls_out if rank else lib.llama_model_n_embd_out)(self._model._open())
            # libllama keeps these in a map of vectors, which the next decode empties: nothing to show without a copy.
            pooled: NDArray[np.float32] = np.frombuffer(ffi.buffer(pointer, 4 * size), np.float32).copy()
            return pooled

    def _must_have_token_embeddings(self) -> None:
        self._must_have_embeddings()
        # libllama has a buffer for them all the same, with nothing in it.
        if self.pooling_type != PoolingType.NONE:
            raise EmbeddingsError("there are no embeddings of single tokens: they are pooled; use embeddings_seq_ith")

    def _must_have_embeddings(self) -> None:
        if not self._embeddings:
            raise EmbeddingsError(
                "this context computes no embeddings: make it with embeddings=True, or set_embeddings(True)"
            )

    def token_data_array(self) -> TokenDataArray:
        """Candidates for the next token, after the last output of the last batch."""
        return self.token_data_array_ith(-1)

    def token_data_array_ith(self, i: SupportsIndex) -> TokenDataArray:
        """Candidates for the token after one of the last batch.

        Parameters
        ----------
        i
            As for :meth:`get_logits_ith`.
        """
        return TokenDataArray.from_logits(self.get_logits_ith(i))
