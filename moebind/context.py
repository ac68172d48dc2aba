"""Contexts: a model at work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind import checks, log
from moebind._native import CData, Hooks, lib, own
from moebind._owner import CallLock
from moebind.adapters import Adapters
from moebind.batch import Batch
from moebind.conversation import Conversation
from moebind.enums import GgmlType, PoolingType
from moebind.errors import (
    AbortedError,
    BatchError,
    ContextCreationError,
    DecodeError,
    EncodeError,
    NativeError,
    NoKvSlotError,
)
from moebind.generation import Piece, generate
from moebind.kv_cache import KvCache
from moebind.memory import MemoryBreakdown, read_breakdown
from moebind.native_params import native_context_params
from moebind.outputs import Outputs
from moebind.params import ContextParams
from moebind.sampler import Sampler
from moebind.state import State
from moebind.timings import Timings, read_timings

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from moebind.model import Model

__all__ = ["Context"]


class Context(Outputs, KvCache, State, Adapters, Conversation):
    """A model at work: a KV cache, and the logits and embeddings of the last batch. Made by ``Model.new_context``.

    Calls from several threads wait for each other; :meth:`abort` does not wait. A callback of a context must not call
    it.
    """

    _warn_unclosed = True

    def __init__(self, model: Model, params: ContextParams) -> None:
        native = native_context_params(model, params)
        hooks = Hooks(abort=params.abort_callback, eval=params.eval_callback)
        lib.moebind_hooks_into_context_params(hooks.pointer, native)
        lib.moebind_log_forget()
        try:
            with model._listing:  # the graphs have room for all of the model's adapters
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
        self._suppress = model._suppressed() if model._suppressed().size else None
        self._outputs_reserved = self._n_seq_max
        self._forget_outputs()
        #: Which tokens each sequence's cache begins with, as far as generate() knows.
        self._history: dict[int, NDArray[np.int32]] = {}
        self._on_device = {}
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
            self._loras = ()

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
                f"the cache has no room for {n_tokens} more tokens (n_ctx is {self.n_ctx}, {self.n_ctx_seq} a "
                "sequence): remove sequences or parts of them, or make the context with a larger n_ctx",
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
            return read_timings(lib.llama_perf_context(native))

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
        prompt: str | ArrayLike | Sequence[Mapping[str, object]],
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
            Text, token ids, or messages, which are rendered as :meth:`chat` does. Text is read with its special
            tokens, and begins as the model wants it to.
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
        return self._generate(
            prompt,
            frozenset(),
            sampler=sampler,
            max_tokens=max_tokens,
            stop=stop,
            seq_id=seq_id,
            reuse_prefix=reuse_prefix,
        )

    def _generate(
        self,
        prompt: str | ArrayLike | Sequence[Mapping[str, object]],
        shown: frozenset[int],
        *,
        sampler: Sampler | None,
        max_tokens: int | None,
        stop: str | Sequence[str],
        seq_id: SupportsIndex,
        reuse_prefix: bool,
    ) -> Iterator[Piece]:
        texts = [stop] if isinstance(stop, str) else list(stop)
        for each in texts:
            if not checks.utf8("stop", each):
                raise ValueError("stop holds an empty text, which would stop everything")
        limit = None if max_tokens is None else checks.integer("max_tokens", max_tokens, 0)
        tokens = self._prompt_tokens(prompt)
        if sampler is not None:
            if not isinstance(sampler, Sampler):
                raise TypeError(f"sampler is {sampler!r}; it takes a Sampler")
            sampler._must_choose()
        return generate(
            self,
            tokens,
            sampler=sampler,
            max_tokens=limit,
            stop=texts,
            seq_id=self._seq("seq_id", seq_id),
            reuse_prefix=checks.boolean("reuse_prefix", reuse_prefix),
            shown=shown,
        )

    def _prompt_tokens(self, prompt: str | ArrayLike | Sequence[Mapping[str, object]]) -> NDArray[np.int32]:
        if isinstance(prompt, (list, tuple)) and any(isinstance(each, Mapping) for each in prompt):
            prompt = self._model.apply_chat_template(prompt)
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
