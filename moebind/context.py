"""Contexts: a model at work."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from moebind import checks, log
from moebind._native import CData, Hooks, ffi, lib, own
from moebind._owner import CallLock
from moebind.batch import Batch
from moebind.enums import FlashAttnType, GgmlType, PoolingType
from moebind.errors import (
    AbortedError,
    BatchError,
    ContextCreationError,
    DecodeError,
    EmbeddingsError,
    EncodeError,
    NativeError,
    NoKvSlotError,
)
from moebind.generation import Piece, generate
from moebind.kv_cache import KvCache
from moebind.memory import MemoryBreakdown, read_breakdown
from moebind.params import ContextParams
from moebind.timings import Timings
from moebind.token_data import TokenDataArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from moebind.model import Model
    from moebind.sampler import Sampler

__all__ = ["Context"]

#: A cache of more cells is refused: llama.cpp allocates what describes them before it finds that nothing fits.
CELLS_MAX = 2**27


class _Outputs:
    """What keeps one output buffer for the arrays that show it, after its context has moved on to another."""

    __slots__ = ("__weakref__", "buffer")
    buffer: CData | None

    def __init__(self) -> None:
        self.buffer = None


class Context(KvCache):
    """A model at work: a KV cache, and the logits and embeddings of the last batch. Made by ``Model.new_context``.

    Calls from several threads wait for each other; :meth:`abort` does not wait. A callback of a context must not call
    it.
    """

    _warn_unclosed = True
    #: How many outputs the last batch had.
    _n_outputs = 0
    #: Which of its tokens had them; None: its only token.
    _flags: NDArray[np.int8] | None = None

    def __init__(self, model: Model, params: ContextParams) -> None:
        native = _native_params(model, params)
        hooks = Hooks(abort=params.abort_callback, eval=params.eval_callback)
        lib.moebind_hooks_into_context_params(hooks.pointer, native)
        lib.moebind_log_forget()
        try:
            pointer = lib.llama_init_from_model(model._open(), native[0])
        except NativeError as error:
            raise ContextCreationError(f"{model!r} with {params!r}: {error.message}{log.recent_lines()}") from error
        if not pointer:
            raise ContextCreationError(f"no context for {model!r} with {params!r}{log.recent_lines()}")
        self._pointer = own(pointer, lib.llama_free, model._open(), hooks)
        self._lock = CallLock()
        self._hooks = hooks
        self._model = model
        self._params = params
        self._n_seq_max = int(lib.llama_n_seq_max(pointer))
        self._n_batch = int(lib.llama_n_batch(pointer))
        self._unified = params.kv_unified
        # The graph that moves cached keys has no kernel for this type.
        self._can_shift_type = params.type_k != GgmlType.BF16
        self._embeddings = params.embeddings
        self._outputs: weakref.ref[_Outputs] | None = None
        self._outputs_reserved = self._n_seq_max
        self._forget_outputs()
        #: Which tokens each sequence's cache begins with, as far as generate() knows.
        self._history: dict[int, NDArray[np.int32]] = {}
        model._children.add(self)

    @contextmanager
    def _exclusive(self) -> Iterator[CData]:
        """Hold the context during a native call."""
        with self._lock.held():
            yield self._open()

    def close(self) -> None:
        """Free the context, once no view of it is left; waits for a running call. Closing twice does nothing."""
        if self._pointer is None:
            return
        with self._lock.held():
            self._pointer = None

    def __repr__(self) -> str:
        if self.closed:
            return "<Context, closed>"
        return f"<Context of {self._model!r}, n_ctx={self.n_ctx}>"

    # --- what it is ---

    @property
    def model(self) -> Model:
        """The model that it computes."""
        return self._model

    @property
    def params(self) -> ContextParams:
        """What it was made with; the properties below tell what libllama made of it."""
        return self._params

    @property
    def n_ctx(self) -> int:
        """Tokens that the cache holds, over all sequences (``llama_n_ctx``)."""
        return int(lib.llama_n_ctx(self._open()))

    @property
    def n_ctx_seq(self) -> int:
        """Tokens that one sequence can have (``llama_n_ctx_seq``)."""
        return int(lib.llama_n_ctx_seq(self._open()))

    @property
    def n_batch(self) -> int:
        """The most tokens in one :meth:`decode` (``llama_n_batch``)."""
        return int(lib.llama_n_batch(self._open()))

    @property
    def n_ubatch(self) -> int:
        """The most tokens that are computed at once (``llama_n_ubatch``)."""
        return int(lib.llama_n_ubatch(self._open()))

    @property
    def n_seq_max(self) -> int:
        """The most sequences (``llama_n_seq_max``)."""
        self._open()
        return self._n_seq_max

    @property
    def n_threads(self) -> int:
        """Threads that compute single tokens (``llama_n_threads``)."""
        return int(lib.llama_n_threads(self._open()))

    @property
    def n_threads_batch(self) -> int:
        """Threads that compute prompts and batches (``llama_n_threads_batch``)."""
        return int(lib.llama_n_threads_batch(self._open()))

    @property
    def pooling_type(self) -> PoolingType:
        """How token embeddings become one of a sequence (``llama_pooling_type``)."""
        return PoolingType(lib.llama_pooling_type(self._open()))

    # --- computing ---

    def decode(self, batch: Batch) -> None:
        """Process a batch: its tokens enter the cache, its outputs can be read afterwards.

        Parameters
        ----------
        batch
            At most ``n_batch`` tokens.

        Raises
        ------
        BatchError
            If the batch is empty, too large, or names tokens or sequences that there are not.
        NoKvSlotError
            If the cache has no room; the context is as before.
        AbortedError
            If :meth:`abort` or an abort callback stopped it; what was processed stays in the cache.
        DecodeError
            If llama.cpp refuses the batch for another reason, such as positions that do not continue the sequence.

        Notes
        -----
        Stands on ``llama_decode``. The outputs of an earlier batch are overwritten.
        """
        self._history.clear()
        self._decode(batch)

    def _decode(self, batch: Batch) -> None:
        with self._exclusive() as native:
            n_outputs = self._check_batch(native, batch)
            self._compute(native, batch._struct(), n_outputs)
            self._flags = batch.logits.copy()

    def _compute(self, native: CData, batch: CData, n_outputs: int) -> None:
        """``llama_decode``, for a batch that is known to be good. The caller holds the context."""
        if n_outputs > self._outputs_reserved:
            self._release_outputs(native)
            self._outputs_reserved = n_outputs
        self._forget_outputs()
        # Asked for before it began: not every device would look.
        code = 2 if lib.moebind_hooks_aborted(self._hooks.pointer) else lib.llama_decode(native, batch)
        if code != 0:
            self._raise_decode_error(code, batch.n_tokens)
        self._n_outputs = n_outputs

    def _raise_decode_error(self, code: int, n_tokens: int) -> None:
        if code == 1:
            raise NoKvSlotError(
                f"the cache has no room for {n_tokens} more tokens (n_ctx is {self.n_ctx}, {self.n_ctx_seq} a sequence): "
                "remove sequences or parts of them, or make the context with a larger n_ctx",
                code,
            )
        if code == 2:
            lib.moebind_hooks_forget(self._hooks.pointer)
            raise AbortedError("the computation was aborted; what was processed before is in the cache", code)
        reason = "the batch does not fit the context" if code == -1 else "the computation failed"
        raise DecodeError(f"llama_decode returned {code}: {reason}{log.recent_lines(3)}", code)

    def encode(self, batch: Batch) -> None:
        """Process a batch with the encoder of an encoder-decoder model, or without a cache.

        Raises
        ------
        BatchError
            If the batch is empty or larger than ``n_ubatch``, or the model has only a decoder.
        EncodeError
            If llama.cpp refuses the batch.

        Notes
        -----
        Stands on ``llama_encode``.
        """
        with self._exclusive() as native:
            if lib.llama_get_memory(native) and not lib.llama_model_has_encoder(self._model._open()):
                raise BatchError("this model has no encoder; use decode()")
            if batch.n_tokens > self.n_ubatch:
                raise BatchError(f"the batch has {batch.n_tokens} tokens; encode() takes {self.n_ubatch} (n_ubatch)")
            n_outputs = self._check_batch(native, batch)
            self._release_outputs(native)
            self._outputs_reserved = max(self._outputs_reserved, n_outputs)
            self._forget_outputs()
            code = lib.llama_encode(native, batch._struct())
            if code != 0:
                raise EncodeError(f"llama_encode returned {code}{log.recent_lines(3)}", code)
            self._n_outputs = n_outputs
            self._flags = batch.logits.copy()

    def _check_batch(self, native: CData, batch: Batch) -> int:
        """What libllama only asserts, or does not look at. Returns how many outputs there will be."""
        if not isinstance(batch, Batch):
            raise TypeError(f"batch is {batch!r}; it takes a Batch, such as Batch.get_one(tokens)")
        if self._model.params.no_alloc:
            raise BatchError("the model was loaded with no_alloc: it has no weights to compute with")
        n = batch.n_tokens
        if not 1 <= n <= self._n_batch:
            raise BatchError(f"the batch has {n} tokens; this context takes 1 to {self._n_batch} (n_batch)")
        if not lib.llama_get_causal_attn(native) and n > self.n_ubatch:
            raise BatchError(
                f"the batch has {n} tokens; without causal attention, {self.n_ubatch} are taken (n_ubatch)"
            )
        if batch._embd is not None:
            width = lib.llama_model_n_embd_inp(self._model._open())
            if batch._embd.shape[1] != width:
                raise BatchError(f"the embeddings have {batch._embd.shape[1]} columns; this model takes {width}")
        elif int(batch.token.max()) >= self._model.n_vocab or int(batch.token.min()) < 0:
            raise BatchError(f"the batch has a token outside the vocabulary of {self._model.n_vocab}")
        used = np.arange(batch._seq_id.shape[1]) < batch._n_seq_id[:n, None]
        if int(batch._seq_id[:n][used].max()) >= self._n_seq_max:
            raise BatchError(f"the batch has a sequence beyond {self._n_seq_max - 1}: n_seq_max is {self._n_seq_max}")
        if not batch._automatic and int(batch.pos.min()) < 0:
            raise BatchError("the batch has a negative position")
        n_outputs = n if self._embeddings else batch.n_outputs()
        most = self._params.n_outputs_max or self._n_batch
        if n_outputs > most:
            raise BatchError(f"the batch asks for {n_outputs} outputs; this context takes {most} (n_outputs_max)")
        return n_outputs

    # --- outputs ---

    def _forget_outputs(self) -> None:
        self._n_outputs = 0
        self._flags = None

    def _release_outputs(self, native: CData) -> None:
        """Before libllama makes itself a larger output buffer: leave the old one to the arrays that show it."""
        outputs = None if self._outputs is None else self._outputs()
        if outputs is not None:
            outputs.buffer = own(lib.moebind_take_output(native), lib.ggml_backend_buffer_free)
            self._outputs = None

    def _view(self, pointer: CData, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A read-only array over libllama's memory, which stays as long as the array does."""
        outputs = None if self._outputs is None else self._outputs()
        if outputs is None:
            outputs = _Outputs()
            self._outputs = weakref.ref(outputs)
        size = int(np.prod(shape))
        kept = own(ffi.cast("char *", pointer), _nothing, self._open(), outputs)
        array: NDArray[np.float32] = np.frombuffer(ffi.buffer(kept, 4 * size), np.float32).reshape(shape)
        array.flags.writeable = False
        return array

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

    def _hint(self) -> str:
        return "" if self._n_outputs else ": decode a batch that asks for logits first"

    def get_logits(self) -> NDArray[np.float32]:
        """The logits of all outputs of the last batch.

        Returns
        -------
        numpy.ndarray
            float32, ``(n_outputs, n_vocab)``, rows in the order of the batch: a read-only view without a copy. Its
            memory stays as long as the array; the next ``decode`` overwrites what is in it.

        Raises
        ------
        IndexError
            If there are none.

        Notes
        -----
        Stands on ``llama_get_logits``.
        """
        with self._exclusive() as native:
            self._output_row(-1)
            return self._view(lib.llama_get_logits(native), (self._n_outputs, self._model.n_vocab))

    def get_logits_ith(self, i: SupportsIndex) -> NDArray[np.float32]:
        """The logits of one token of the last batch.

        Parameters
        ----------
        i
            Its place in the batch; negative numbers count outputs from the end.

        Returns
        -------
        numpy.ndarray
            float32, ``(n_vocab,)``: a read-only view, as :meth:`get_logits` gives.

        Raises
        ------
        IndexError
            If the batch asked for no output there.

        Notes
        -----
        Stands on ``llama_get_logits_ith``.
        """
        at = checks.integer("i", i, -checks.INT32_MAX)
        with self._exclusive() as native:
            return self._logits(native, at)

    def _logits(self, native: CData, at: int) -> NDArray[np.float32]:
        self._output_row(at)
        return self._view(lib.llama_get_logits_ith(native, at), (self._model._n_vocab,))

    def embeddings_ith(self, i: SupportsIndex) -> NDArray[np.float32]:
        """The embedding of one token of the last batch.

        Parameters
        ----------
        i
            Its place in the batch; negative numbers count outputs from the end.

        Returns
        -------
        numpy.ndarray
            float32, ``(n_embd_out,)``: a read-only view, as :meth:`get_logits` gives.

        Raises
        ------
        EmbeddingsError
            If the context computes none, or pools them.
        IndexError
            If the batch asked for no output there.

        Notes
        -----
        Stands on ``llama_get_embeddings_ith``.
        """
        at = checks.integer("i", i, -checks.INT32_MAX)
        with self._exclusive() as native:
            self._must_have_embeddings()
            self._output_row(at)
            pointer = lib.llama_get_embeddings_ith(native, at)
            if not pointer:
                raise EmbeddingsError(
                    "there are no embeddings of single tokens: they are pooled; use embeddings_seq_ith"
                )
            return self._view(pointer, (lib.llama_model_n_embd_out(self._model._open()),))

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
        Stands on ``llama_get_embeddings_seq``.
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

    # --- settings ---

    def set_n_threads(self, n_threads: SupportsIndex, n_threads_batch: SupportsIndex) -> None:
        """Choose how many threads compute (``llama_set_n_threads``).

        Parameters
        ----------
        n_threads, n_threads_batch
            For single tokens, and for prompts and batches.
        """
        single = checks.integer("n_threads", n_threads, 1, checks.THREADS_MAX)
        several = checks.integer("n_threads_batch", n_threads_batch, 1, checks.THREADS_MAX)
        with self._exclusive() as native:
            lib.llama_set_n_threads(native, single, several)

    def set_embeddings(self, embeddings: bool) -> None:
        """Compute embeddings from now on, or no longer (``llama_set_embeddings``)."""
        wanted = checks.boolean("embeddings", embeddings)
        with self._exclusive() as native:
            lib.llama_set_embeddings(native, wanted)
            self._embeddings = wanted
            self._forget_outputs()
            self._outputs_reserved = 0  # the output buffer has another layout now

    def set_causal_attn(self, causal_attn: bool) -> None:
        """Let tokens look at what comes before only, or at everything in their batch (``llama_set_causal_attn``)."""
        wanted = checks.boolean("causal_attn", causal_attn)
        with self._exclusive() as native:
            lib.llama_set_causal_attn(native, wanted)

    def synchronize(self) -> None:
        """Wait until everything is computed; reading outputs does it too (``llama_synchronize``)."""
        with self._exclusive() as native:
            lib.llama_synchronize(native)

    def abort(self) -> None:
        """Stop the computation that is running; it raises :class:`AbortedError`. Any thread may call this, any time.

        When none is running, the next :meth:`decode` is stopped; :meth:`generate` forgets what came before it. Only
        the CPU looks while it computes: what a device was given, it finishes.
        """
        self._open()
        lib.moebind_hooks_abort(self._hooks.pointer)

    def timings(self) -> Timings:
        """How long it took so far (``llama_perf_context``)."""
        with self._exclusive() as native:
            return Timings.from_native(lib.llama_perf_context(native))

    def reset_timings(self) -> None:
        """Start measuring anew (``llama_perf_context_reset``)."""
        with self._exclusive() as native:
            lib.llama_perf_context_reset(native)

    def memory_breakdown(self) -> MemoryBreakdown:
        """Where the bytes of the context and its model are; printing it gives a table."""
        with self._exclusive() as native:
            return read_breakdown(native)

    def generate(
        self,
        prompt: str | ArrayLike,
        *,
        sampler: Sampler | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        seq_id: SupportsIndex = 0,
        reuse_prefix: bool = True,
    ) -> Iterator[Piece]:
        """Generate text, piece by piece.

        Parameters
        ----------
        prompt
            Text, or token ids. Text is read with its special tokens, and begins as the model wants it to.
        sampler
            How tokens are chosen; None: always the likeliest. It accepts the tokens that it chooses.
        max_tokens
            Stop after so many; None: when the model ends or the context is full.
        stop
            Texts that end the generation. They, and what comes after them, are not given out.
        seq_id
            The sequence. What it holds beyond the prompt is removed.
        reuse_prefix
            Do not decode again what the sequence's cache already begins with.

        Yields
        ------
        Piece
            Token, text and place. Text never splits a character; the last piece has a ``stop_reason``.

        Raises
        ------
        ValueError
            If the prompt is empty, or does not fit the context.
        AbortedError
            If :meth:`abort` was called meanwhile.

        Examples
        --------
        >>> for piece in context.generate("Once upon a time", max_tokens=32):
        ...     print(piece.text, end="", flush=True)
        """
        texts = [stop] if isinstance(stop, str) else list(stop)
        for each in texts:
            if not checks.utf8("stop", each):
                raise ValueError("stop holds an empty text, which would stop everything")
        limit = None if max_tokens is None else checks.integer("max_tokens", max_tokens, 0)
        tokens = self._prompt_tokens(prompt)
        if sampler is not None:
            sampler._must_choose()
        return generate(
            self,
            tokens,
            sampler=sampler,
            max_tokens=limit,
            stop=texts,
            seq_id=self._seq("seq_id", seq_id),
            reuse_prefix=checks.boolean("reuse_prefix", reuse_prefix),
        )

    def _prompt_tokens(self, prompt: str | ArrayLike) -> NDArray[np.int32]:
        if isinstance(prompt, str):
            tokens = self._model.str_to_token(prompt)
        else:
            tokens = checks.int32_array("prompt", prompt, 0, self._model.n_vocab - 1)
        if tokens.size == 0:
            raise ValueError("prompt has no tokens; it takes at least one")
        if tokens.size > self.n_ctx_seq:
            raise ValueError(
                f"prompt has {tokens.size} tokens; a sequence of this context takes {self.n_ctx_seq}: make it with a "
                "larger n_ctx"
            )
        return tokens


def _nothing(pointer: CData) -> None:
    """What is done to a view's memory at its end: nothing, but it held others until then."""


def _native_params(model: Model, params: ContextParams) -> CData:
    """``llama_context_params`` from ours, after the checks that need the model."""
    if not isinstance(params, ContextParams):
        raise TypeError(f"params is {params!r}; it takes ContextParams")
    if model.params.vocab_only:
        raise ContextCreationError("the model was loaded with vocab_only: it has no weights for a context")
    n_ctx = params.n_ctx or model.n_ctx_train
    if n_ctx > CELLS_MAX:
        raise ContextCreationError(f"n_ctx is {n_ctx}; at most {CELLS_MAX} are taken")
    outputs = params.n_outputs_max or min(n_ctx, params.n_batch)
    if params.n_seq_max > outputs:
        raise ContextCreationError(
            f"n_seq_max is {params.n_seq_max}, but a batch has at most {outputs} outputs: raise n_batch, n_ctx or "
            "n_outputs_max"
        )
    if params.flash_attn_type == FlashAttnType.DISABLED:
        block, width = lib.ggml_blck_size(params.type_k), model._n_embd_head_k
        if width % block:
            raise ContextCreationError(
                f"type_k is {params.type_k.name}, in blocks of {block}, but this model's keys have {width} numbers: "
                "choose another type_k, or leave flash attention on"
            )
    _check_cache_size(model, params, n_ctx)
    native = ffi.new("struct llama_context_params *", lib.llama_context_default_params())
    for name, _ in ffi.typeof("struct llama_context_params").fields:
        value: Any = getattr(params, name, None)
        if value is not None and not callable(value):  # callbacks go through Hooks
            setattr(native, name, value)
    return native


def _check_cache_size(model: Model, params: ContextParams, n_ctx: int) -> None:
    """Refuse a cache that no memory of this machine could hold: the system would rather kill the process."""
    from moebind.devices import devices

    if model.is_recurrent or model.is_hybrid:
        return
    heads = model.n_head_kv * model.n_layer * model._n_embd_head_k
    size = sum(lib.ggml_row_size(kind, 256) / 256 for kind in (params.type_k, params.type_v)) * heads * n_ctx
    most = sum({(device.backend, device.description): device.memory_total for device in devices()}.values())
    if size > most:
        raise ContextCreationError(
            f"n_ctx is {n_ctx}: its KV cache would take {size / 2**30:.1f} GiB, all devices together have "
            f"{most / 2**30:.1f} GiB; ask for less, or for smaller cache types"
        )
