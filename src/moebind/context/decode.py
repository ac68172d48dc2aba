"""Processing batches: the part of ``Context`` that computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from moebind._core import checks, log
from moebind._core.native import CData, lib
from moebind._core.shown import shown
from moebind.context.batch import Batch
from moebind.context.batch_ext import BatchExt
from moebind.context.kv_cache import KvCache
from moebind.context.outputs import Outputs
from moebind.enums import PoolingType, ProcessType
from moebind.errors import AbortedError, BatchError, DecodeError, EncodeError, NoKvSlotError

if TYPE_CHECKING:
    import weakref
    from weakref import WeakSet

    from moebind._core.owner import CallLock, Owner
    from moebind.backend.timings import SpeculativeCounts, WrittenCounts
    from moebind.model.prompts import Prompts
    from moebind.params.params import ContextParams

__all__ = ["Decoding"]

#: Codes with which ``llama_decode`` leaves everything as it was: no room in the cache, and a batch that is not valid.
_REFUSED = {1, -1}
_ERROR, _INFO = lib.GGML_LOG_LEVEL_ERROR, lib.GGML_LOG_LEVEL_INFO
_NOTHING = nullcontext()


class Decoding(Outputs, KvCache):
    """The part of a context that computes batches. :class:`moebind.Context` has it."""

    _model: Prompts
    #: Whether it has no memory: every decode is an encode, all of whose tokens have outputs.
    _encodes = False
    #: Whether decoding looks at what was encoded (cross attention), and the sequences that were.
    _has_cross_attention = False
    _encoded: frozenset[int] = frozenset()
    #: The architecture of a draft model that takes hidden states of the one that it drafts for; None for other models.
    _drafts_from: str | None = None
    #: Whether it computes the layers for multi-token prediction, which take hidden states along with tokens.
    _predicts_ahead = False
    #: How many positions the model has embeddings for; 0: any.
    _n_pos = 0
    #: The place in memory to which :meth:`_likeliest_after` has its token written.
    _next_token: CData
    #: Locks of what else computing uses: samplers that run in the graph, and thread pools.
    _extra_locks: tuple[CallLock, ...] = ()
    #: A context whose memory or model it uses.
    _other: Decoding | None = None
    #: What drafts for it, and those of them that generating made; what it drafts for itself.
    _speculatives: WeakSet[Owner]
    _own_speculatives: dict[object, Owner]
    _drafter: weakref.ref[Owner] | None = None
    #: What was drafted for it.
    _speculated: SpeculativeCounts
    #: What several tokens at once were for texts that go on.
    _written: WrittenCounts
    _params: ContextParams

    def decode(self, batch: Batch) -> None:
        """Process a batch: its tokens enter the cache, its outputs can be read afterwards.

        Parameters
        ----------
        batch
            At most ``n_batch`` tokens.

        Raises
        ------
        BatchError
            If the batch is empty, too large, or names tokens or sequences that do not exist.
        NoKvSlotError
            If the cache has no room; the context is as before.
        AbortedError
            If :meth:`abort` or a callback stopped it; what was processed stays in the cache.
        DecodeError
            If llama.cpp refuses the batch for another reason, such as positions that do not continue the sequence.

        Notes
        -----
        Uses ``llama_decode``. The outputs of an earlier batch are overwritten. A model without a cache, such as
        BERT, encodes instead.
        """
        _must_be_plain(batch)
        with self._exclusive() as native:
            self._decode(native, batch, by_user=True)

    def _decode(self, native: CData, batch: Batch, by_user: bool = False) -> None:
        """Check and compute a batch, as :meth:`decode` does. The caller holds the context."""
        n_outputs = self._check_batch(native, batch)
        if self._encodes:
            self._encode(batch, lib.llama_encode, native, batch._struct())
            return
        with self._changing(batch) if by_user else nullcontext():
            self._compute(native, batch._struct(), n_outputs)
        self._flags = batch.logits.copy()
        self._remember_sequences(batch)

    def process(self, batch: BatchExt, type: ProcessType | int = ProcessType.DECODE) -> None:
        """Process an extended batch, as :meth:`decode` or :meth:`encode` process a :class:`Batch`.

        Parameters
        ----------
        batch
            Made for this context.
        type
            Whether the decoder or the encoder is to process it.

        Raises
        ------
        BatchError
            As :meth:`decode` and :meth:`encode` do, or if the batch was made for another context.
        NoKvSlotError, AbortedError, DecodeError, EncodeError
            As they do.

        Notes
        -----
        Uses ``llama_process``.
        """
        kind = checks.member("type", type, ProcessType)
        if not isinstance(batch, BatchExt):
            raise TypeError(f"batch is {shown(batch)}; it takes a BatchExt; decode() takes a Batch")
        with self._exclusive() as native, batch._lock.held():
            if batch._context is not self:
                raise BatchError("the batch was made for another context")
            encoding = kind == ProcessType.ENCODE or self._encodes
            self._must_encode(encoding)
            n_outputs = self._check_batch(native, batch, encoding)
            if encoding:
                self._encode(batch, lib.llama_process, native, kind, batch._open())
                return
            self._reserve_outputs(native, n_outputs)
            with self._changing(batch):
                aborted = lib.moebind_hooks_aborted(self._hooks.pointer)
                code = 2 if aborted else self._run(lib.llama_process, native, kind, batch._open())
                if code != 0:
                    self._raise_decode_error(code, batch.n_tokens)
            self._n_outputs = n_outputs
            self._flags = batch.logits
            self._remember_sequences(batch)

    @contextmanager
    def _changing(self, batch: Batch | BatchExt) -> Iterator[None]:
        """Note that a batch of the user's changes its sequences, unless it is refused. The caller holds the context."""
        sequences = batch._sequences()
        owners = [self._owners[seq] for seq in sequences]
        known = {seq: self._history[seq] for seq in sequences if seq in self._history}
        # Before it is computed: Ctrl-C can come when llama.cpp is done.
        self._changes(sequences)
        if batch._shared():
            self._shares(sequences)
        try:
            yield
        except DecodeError as error:
            if error.code in _REFUSED:
                self._history.update(known)
                for seq, owner in zip(sequences, owners, strict=True):
                    self._owners[seq] = owner
            raise

    def _compute(self, native: CData, batch: CData, n_outputs: int) -> None:
        """``llama_decode``, for a batch that is known to be good. The caller holds the context."""
        makes_room = n_outputs > self._outputs_reserved and not self._params.no_perf
        self._reserve_outputs(native, n_outputs)
        with self._written.making_room(native) if makes_room else _NOTHING:
            # Asked for before it began: not every device would look.
            code = 2 if lib.moebind_hooks_aborted(self._hooks.pointer) else self._run(lib.llama_decode, native, batch)
        if code != 0:
            self._raise_decode_error(code, batch.n_tokens)
        self._n_outputs = n_outputs

    @property
    def _length_max(self) -> int:
        """Tokens that a sequence can have, in its cache and for its model."""
        return min(self.n_ctx_seq, self._n_pos or self.n_ctx_seq)

    def _likeliest_after(self, native: CData, batch: CData, token: int, pos: int) -> int | None:
        """:meth:`_compute` for one token, and :meth:`_likeliest`, in one native call. The caller holds the context.

        None if there is more to do than that call does; nothing is done then. After a computation the processor's
        caches hold weights, so that whatever Python touches between two tokens takes ten times as long as in a loop
        of its own: so nothing is called here that need not be.
        """
        if self._extra_locks or self._hooks.eval is not None or self._suppress is not None:
            return None
        if not self._outputs_reserved:  # libllama makes a larger buffer, and arrays may show the one it has
            return None
        self._n_outputs, self._flags, self._has_logits, self._output_seqs = 0, None, True, None
        code = lib.moebind_step(native, self._hooks.pointer, batch, token, pos, self._next_token)
        if code != 0:
            self._raise_decode_error(code, 1)
        self._n_outputs = 1
        following: int = self._next_token[0]
        return following

    def _run(self, function: Any, native: CData, *arguments: Any) -> int:
        """Call a native function that computes, with everything that it uses."""
        lib.moebind_log_forget()  # an error quotes what was said of this batch
        level = _INFO  # an exception says it
        try:
            lib.moebind_log_hold()  # inside: Ctrl-C can come right after it
            if self._extra_locks:
                with ExitStack() as held:
                    for lock in self._extra_locks:
                        held.enter_context(lock.held())
                    code = int(function(native, *arguments))
            else:
                code = int(function(native, *arguments))
            if code == 0:
                level = _ERROR
        finally:
            lib.moebind_log_release(level)
        # An eval callback that said stop at the last node did so after everything was computed.
        if code == 0 and self._hooks.eval is not None and lib.moebind_hooks_aborted(self._hooks.pointer):
            return 2
        return code

    def _raise_decode_error(self, code: int, n_tokens: int) -> None:
        if code == 1:
            raise NoKvSlotError(
                f"the cache has no room for {n_tokens} more tokens (n_ctx is {self.n_ctx}, {self.n_ctx_seq} per "
                "sequence): remove sequences or parts of them, or make the context with a larger n_ctx",
                code,
            )
        if code == 2:
            lib.moebind_hooks_forget(self._hooks.pointer)
            raise AbortedError("the computation was aborted; what was processed before is in the cache", code)
        reason = _refusal_message() if code == -1 else "the computation failed"
        raise DecodeError(f"llama_decode returned {code}: {reason}{log.recent_lines()}", code)

    def encode(self, batch: Batch) -> None:
        """Process a batch with a model's encoder, or without a cache.

        All tokens have outputs: embeddings, or logits if the model gives some. What an encoder-decoder model such as T5
        encoded is what :meth:`decode` then sees, sequence by sequence; decoding begins with
        ``Model.decode_start_token``.

        Parameters
        ----------
        batch
            At most ``n_ubatch`` tokens.

        Raises
        ------
        BatchError
            If the batch is empty or larger than ``n_ubatch``, or the model has only a decoder.
        AbortedError
            If :meth:`abort` or a callback stopped it.
        EncodeError
            If llama.cpp refuses the batch.

        Notes
        -----
        Uses ``llama_encode``.
        """
        _must_be_plain(batch)
        with self._exclusive() as native:
            self._must_encode(True)
            self._check_batch(native, batch, encoding=True)
            self._encode(batch, lib.llama_encode, native, batch._struct())

    def _must_encode(self, encoding: bool) -> None:
        if encoding and not self._encodes and not lib.llama_model_has_encoder(self._model._open()):
            raise BatchError("this model has no encoder; use decode()")

    def _encode(self, batch: Batch | BatchExt, function: Any, native: CData, *arguments: Any) -> None:
        """``llama_encode``, or ``llama_process`` that does it, for a batch that is known to be good."""
        n = batch.n_tokens
        self._encoded = frozenset()
        self._reserve_outputs(native, n)
        aborted = lib.moebind_hooks_aborted(self._hooks.pointer)
        code = 2 if aborted else self._run(function, native, *arguments)
        if code == 2:
            self._raise_decode_error(code, n)
        if code != 0:
            raise EncodeError(f"llama_encode returned {code}{log.recent_lines(3)}", code)
        self._n_outputs = n
        self._flags = np.ones(n, np.int8)
        self._has_logits = bool(lib.moebind_has_logits(native))
        self._encoded = frozenset(batch._sequences())
        self._remember_sequences(batch)

    def _remember_sequences(self, batch: Batch | BatchExt) -> None:
        """Note which sequence each token belongs to, if backend samplers need it to find their outputs."""
        self._output_seqs = batch._first_sequences().copy() if self._attached else None

    def _reserve_outputs(self, native: CData, n_outputs: int) -> None:
        if n_outputs > self._outputs_reserved:
            self._release_outputs(native)
            self._outputs_reserved = n_outputs
        self._forget_outputs()

    def _check_batch(self, native: CData, batch: Batch | BatchExt, encoding: bool = False) -> int:
        """Check what libllama only asserts, or does not look at. Returns how many outputs there will be."""
        if self._model._without_weights:
            raise BatchError("the model was loaded with no_alloc: it has no weights to compute with")
        # libllama would assert it, in the middle of the call.
        if self._predicts_ahead and not (isinstance(batch, BatchExt) and batch._has_states()):
            raise BatchError(
                "this context predicts further ahead (ContextType.MTP), from tokens and the model's hidden states: it "
                "takes a BatchExt whose entries have a state too, add(..., token=..., state=...)"
            )
        n = batch.n_tokens
        encoding = encoding or self._encodes
        self._check_size(native, n, encoding)
        batch._check_contents(self._model.n_vocab, self._input_width(batch, encoding))
        self._check_sequences(native, batch, encoding)
        self._check_positions(native, batch, encoding)
        n_outputs = n if self._embeddings or encoding else batch.n_outputs()
        most = self._n_outputs_max
        if n_outputs > most:
            raise BatchError(f"the batch asks for {n_outputs} outputs; this context takes {most} (n_outputs_max)")
        return n_outputs

    def _input_width(self, batch: Batch | BatchExt, encoding: bool) -> int:
        """How wide embeddings in the batch have to be. Raises if a draft model's graph would read what is not there."""
        model = self._model._open()
        width = int(lib.llama_model_n_embd_inp(model))
        if self._drafts_from is None:  # only encoders of hidden states take another width than decoders
            return width
        encoders = int(lib.moebind_model_n_embd_inp_enc(model))
        if encoding:
            taken, what = [(False, encoders)], f"its encoder takes those, as embeddings of {encoders} numbers"
        elif self._drafts_from == "eagle3":
            taken = [(True, width)]
            what = f"its decoder takes a BatchExt whose entries have a token and an embedding of {width} numbers"
        else:
            taken = [(True, 0), (False, encoders)]
            what = f"its decoder takes tokens, or those as embeddings of {encoders} numbers"
        form = batch._form()
        if form not in taken:
            raise BatchError(f"this model drafts from hidden states of another, and {what}")
        return form[1]

    def _check_size(self, native: CData, n: int, encoding: bool) -> None:
        if not 1 <= n <= self._n_batch:
            raise BatchError(f"the batch has {n} tokens; this context takes 1 to {self._n_batch} (n_batch)")
        if n <= self.n_ubatch:
            return
        if encoding:
            raise BatchError(f"the batch has {n} tokens; encoding takes {self.n_ubatch} (n_ubatch)")
        if not lib.llama_get_causal_attn(native):
            raise BatchError(
                f"the batch has {n} tokens; without causal attention, {self.n_ubatch} are taken (n_ubatch)"
            )
        # Each part of a batch is pooled by itself, and what the last part gave is kept.
        if self._pools_wholes(native):
            raise BatchError(f"the batch has {n} tokens; where embeddings are pooled, {self.n_ubatch} are (n_ubatch)")

    def _pools_wholes(self, native: CData) -> bool:
        """Whether pooling needs more than the last token of each sequence."""
        if not self._embeddings:
            return False
        pooling = self.pooling_type
        if pooling == PoolingType.RANK:
            return not lib.llama_get_causal_attn(native)
        return pooling in {PoolingType.MEAN, PoolingType.CLS}

    def _check_sequences(self, native: CData, batch: Batch | BatchExt, encoding: bool) -> None:
        sequences = batch._sequences()
        if sequences[-1] >= self._n_seq_max:
            raise BatchError(f"the batch has a sequence beyond {self._n_seq_max - 1}: n_seq_max is {self._n_seq_max}")
        if self._has_cross_attention and not encoding and not self._encoded.issuperset(sequences):
            missing = sorted(set(sequences) - self._encoded)
            raise BatchError(f"sequence {missing[0]} was not encoded: this model takes encode() before decode()")
        if encoding or self._unified or self._n_seq_max == 1:
            return
        if batch._shared():
            raise BatchError(
                "the batch has tokens of several sequences, but each sequence has a cache of its own: make the context "
                "with kv_unified=True"
            )
        # With caches of their own, sequences are computed in parts of equal length, each pooled by itself.
        if len(sequences) > 1 and self._pools_wholes(native):
            lengths = np.bincount(batch._first_sequences())
            lengths = lengths[lengths > 0]
            if lengths.min() != lengths.max():
                raise BatchError(
                    "the batch has sequences of different lengths, whose embeddings would not be pooled as a whole: "
                    "make the context with kv_unified=True"
                )

    def _check_positions(self, native: CData, batch: Batch | BatchExt, encoding: bool) -> None:
        if not batch._automatic:
            first, last = int(batch.pos.min()), int(batch.pos.max())
            if first < 0:
                raise BatchError("the batch has a negative position")
        else:
            memory = lib.llama_get_memory(native)
            last = batch.n_tokens + (-1 if encoding or not memory else int(lib.llama_memory_seq_pos_max(memory, 0)))
        if self._n_pos and last >= self._n_pos:
            raise BatchError(f"the batch has position {last}; this model has embeddings for {self._n_pos} positions")


def _must_be_plain(batch: Batch) -> None:
    if not isinstance(batch, Batch):
        way = "process() takes it" if isinstance(batch, BatchExt) else "it takes a Batch, such as Batch.get_one(tokens)"
        raise TypeError(f"batch is {shown(batch)}; {way}")


def _refusal_message() -> str:
    """The reason for which llama.cpp refused a batch, and what to do where that is known."""
    said = next((line for line in log.recent() if "-> overriding" not in line), "")
    reason = said.partition(": ")[2].rstrip(":")  # without the function's name
    if "position" in reason:
        reason += (
            ". The positions of a sequence must be consecutive, and continue what the cache holds of it: the next one "
            "is kv_cache_seq_pos_max(seq_id) + 1"
        )
    return f"llama.cpp refused the batch{': ' if reason else ''}{reason}"
