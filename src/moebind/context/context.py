"""Contexts: a model at work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, SupportsIndex
from weakref import WeakSet

from moebind._core import checks, log
from moebind._core.class_names import NamedABC
from moebind._core.native import Hooks, ffi, lib, own
from moebind._core.other_names import missing, uncallable
from moebind._core.owner import CallLock, close_all
from moebind._core.shown import shown
from moebind.backend import rpc_servers
from moebind.backend.breakdown import MemoryBreakdown, read_breakdown
from moebind.backend.threadpool import ThreadPool
from moebind.backend.timings import MoeCacheStats, SpeculativeCounts, Timings, WrittenCounts, read_timings
from moebind.context.adapters import Adapters
from moebind.context.async_generation import AsyncGeneration
from moebind.context.backend_sampling import BackendSampling, checked_chains, outputs_per_sequence
from moebind.context.creation import check_memory, native_context_params, pooling_problem
from moebind.context.generate_many import BatchedGeneration
from moebind.context.moe_cache import read_moe_cache
from moebind.enums import ContextType, GgmlType
from moebind.errors import ContextCreationError, EmbeddingsError, NativeError
from moebind.files.architecture_facts import DRAFT_FROM_STATES, ENCODER_DECODER
from moebind.params.observers import TensorObserver, eval_hook
from moebind.params.params import ContextParams
from moebind.sampling.sampler import Sampler
from moebind.state.state import State

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from typing_extensions import Self

    from moebind.model.model import Model

__all__ = ["Context"]

#: How many threads compute: single tokens, and prompts and batches.
_THREADS = ("n_threads", "n_threads_batch")


class Context(BatchedGeneration, BackendSampling, AsyncGeneration, State, Adapters, metaclass=NamedABC):
    """A model at work: a KV cache, and the logits and embeddings of the last batch. Made by ``Model.new_context``.

    Calls from several threads wait for each other; :meth:`abort` does not wait. A callback of a context must not call
    it.
    """

    _warn_unclosed = True
    _elsewhere = "load the model there again, and make one with Model.new_context(params)"
    _model: Model

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("contexts are made by Model.new_context(params)")

    @classmethod
    def _of(
        cls, model: Model, params: ContextParams, ctx_other: Context | None, samplers: Mapping[int, Sampler] | None
    ) -> Self:
        context = cls.__new__(cls)
        context._start(model, params, ctx_other, samplers)
        return context

    def _start(
        self, model: Model, params: ContextParams, ctx_other: Context | None, samplers: Mapping[int, Sampler] | None
    ) -> None:
        if not isinstance(params, ContextParams):
            raise TypeError(f"params is {shown(params)}; it takes ContextParams, such as ContextParams(n_ctx=4096)")
        if ctx_other is not None and not isinstance(ctx_other, Context):
            raise TypeError(f"ctx_other is {shown(ctx_other)}; it takes a Context")
        opened = model._open()  # once: another thread may close it
        chains = checked_chains(samplers, params, model)
        native, keep = native_context_params(model, params, chains, ctx_other)
        callback = params.eval_callback
        if isinstance(callback, TensorObserver):
            callback = callback._for_model(model)
        hooks = Hooks(abort=params.abort_callback, eval=eval_hook(callback))
        if isinstance(callback, TensorObserver):
            callback._register(hooks.pointer)
        lib.moebind_hooks_into_context_params(hooks.pointer, native)
        self._servers = tuple({*model._servers, *(ctx_other._servers if ctx_other is not None else ())})
        # Everything that libllama points to lives until the native context is freed; what is set later is held, too.
        holds = [opened, hooks.pointer, *(chain._open() for chain in chains.values())]
        if ctx_other is not None:
            holds.append(native.ctx_other)
        with ExitStack() as held:
            held.enter_context(log.quoted())
            held.enter_context(rpc_servers.watched(self._servers))
            for chain in chains.values():
                held.enter_context(chain._lock.held())
                chain._attach(model.n_vocab)  # whatever comes of it: libllama asserts that it is not given one again
            if ctx_other is None and not model._without_weights:
                check_memory(model, params, native)
            make = lib.own_moebind_context_counted if model._without_weights else lib.own_moebind_context_new
            try:
                pointer = own(make, opened, native[0], holds=holds)
            except NativeError as error:
                raise ContextCreationError(f"{model!r} with {params!r}: {error.message}{log.recent_lines()}") from error
            if not pointer:
                raise ContextCreationError(f"no context for {model!r} with {params!r}{log.recent_lines()}")
            del keep  # llama.cpp copies it
            rpc_servers.settle(self._servers)
        self._pools: list[ThreadPool] = []
        self._pool_sizes: tuple[int, int] | None = None  # of those that are attached
        self._lock = CallLock()
        self._other = ctx_other
        self._speculatives, self._speculated, self._written = WeakSet(), SpeculativeCounts(), WrittenCounts()
        self._own_speculatives = {}
        self._hooks = hooks
        self._model = model
        self._params = params
        self._n_seq_max = int(lib.llama_n_seq_max(pointer))
        self._n_batch = int(lib.llama_n_batch(pointer))
        self._n_outputs_max = params.n_outputs_max or self._n_batch
        self._n_outputs_max_per_seq = outputs_per_sequence(params, self._n_batch)
        self._unified = params.kv_unified
        self._cache_types = params.type_k, params.type_v
        # The graph that moves cached keys has no kernel for this type.
        self._can_shift_type = params.type_k != GgmlType.BF16
        self._encodes = not lib.llama_get_memory(pointer)
        self._predicts_ahead = params.ctx_type == ContextType.MTP and model.n_layer_nextn > 0
        self._has_cross_attention = model._architecture in ENCODER_DECODER
        self._drafts_from = model._architecture if model._architecture in DRAFT_FROM_STATES else None
        self._n_pos = int(lib.moebind_model_n_pos(opened))
        self._embeddings = params.embeddings
        self._suppress = model._suppressed() if model._suppressed().size else None
        self._outputs_reserved = self._n_seq_max
        self._attached: dict[int, Sampler] = {}
        self._next_token = ffi.new("llama_token *")
        self._forget_outputs()
        self._history = {}
        self._owners = [0] * self._n_seq_max
        self._turns = {}
        self._sharing = set()
        #: What the cache of experts had counted when the timings were reset.
        self._moe_cache_before: MoeCacheStats | None = None
        self._on_device = {}
        self._attached_pointers = {}
        for (seq, chain), held in zip(chains.items(), holds[2:], strict=False):
            self._attach(seq, chain, held)
        self._pointer = pointer
        model._add_child(self)

    def _held(self) -> AbstractContextManager[object]:
        """The context manager for a native call; :meth:`_exclusive` opens the context besides."""
        if self._other is None and not self._servers:
            return self._lock.held()  # what every token goes through
        return self._held_with_others()

    @contextmanager
    def _held_with_others(self) -> Iterator[None]:
        """Hold the context whose memory it uses as well, and look after its servers."""
        others = nullcontext() if self._other is None else self._other._lock.held()
        with self._lock.held(), others, rpc_servers.watched(self._servers):
            yield

    def _update_extra_locks(self) -> None:
        # A pool that was taken away is paused by the next computation, which must not happen to one that works.
        pools = {id(pool): pool._lock for pool in self._pools}
        self._extra_locks = (*(chain._lock for chain in self._attached.values()), *pools.values())

    def close(self) -> None:
        """Free the context, once no view of it is left (``llama_free``); waits for a running call.

        Closing twice does nothing.
        """
        if self._pointer is None:
            return
        with self._lock.held():
            self._pointer = None
            self._loras = ()
            self._attached_pointers = {}
        close_all(self._speculatives, "its target context was closed")
        self._own_speculatives = {}

    if not TYPE_CHECKING:  # type checkers would take it for any attribute

        def __getattr__(self, name: str) -> object:
            raise missing(self, name)

        def __call__(self, *args: object, **kwargs: object) -> object:
            """Refuse, and say what to write: the object of llama-cpp-python is called."""
            raise uncallable(self)

    def __repr__(self) -> str:
        if self.closed:
            return "<Context, closed>"
        n_ctx, asked = self.n_ctx, self._params.n_ctx
        rounded = f" (rounded up from {asked})" if 0 < asked < n_ctx else ""
        return f"<Context of {self._model!r}, n_ctx={n_ctx}{rounded}>"

    # --- what it is ---

    @property
    def model(self) -> Model:
        """The model that it computes."""
        return self._model

    @property
    def params(self) -> ContextParams:
        """The parameters that it was made with; the properties below are what libllama made of them."""
        return self._params

    # --- settings ---

    def set_n_threads(self, n_threads: SupportsIndex, n_threads_batch: SupportsIndex) -> None:
        """Choose how many threads compute (``llama_set_n_threads``).

        Parameters
        ----------
        n_threads, n_threads_batch
            For single tokens, and for prompts and batches; at most as many as an attached :class:`ThreadPool` has.
        """
        single = checks.integer("n_threads", n_threads, 1, checks.THREADS_MAX)
        several = checks.integer("n_threads_batch", n_threads_batch, 1, checks.THREADS_MAX)
        with self._exclusive() as native:
            for name, count, size in zip(
                _THREADS, (single, several), self._pool_sizes or (single, several), strict=True
            ):
                if count > size:
                    raise ValueError(
                        f"{name} is {count}, but the n_threads of the attached pool is {size}: attach a larger one"
                    )
            lib.llama_set_n_threads(native, single, several)

    def set_embeddings(self, embeddings: bool) -> None:
        """Compute embeddings from now on, or stop doing so (``llama_set_embeddings``).

        Raises
        ------
        EmbeddingsError
            If this context cannot pool them: see ``ContextParams.pooling_type``.
        """
        wanted = checks.boolean("embeddings", embeddings)
        problem = pooling_problem(self._model, self._params) if wanted else None
        if problem is not None:
            raise EmbeddingsError(problem)
        with self._exclusive() as native:
            lib.llama_set_embeddings(native, wanted)
            self._embeddings = wanted
            self._forget_outputs()
            self._outputs_reserved = 0  # the output buffer has another layout now

    def set_causal_attn(self, causal_attn: bool) -> None:
        """Let tokens see only what comes before them, or everything in their batch (``llama_set_causal_attn``)."""
        wanted = checks.boolean("causal_attn", causal_attn)
        with self._exclusive() as native:
            lib.llama_set_causal_attn(native, wanted)

    def attach_threadpool(self, pool: ThreadPool, pool_batch: ThreadPool | None = None) -> None:
        """Compute with these threads (``llama_attach_threadpool``).

        Parameters
        ----------
        pool
            For single tokens: at least ``n_threads``. Contexts that share a pool take turns.
        pool_batch
            For prompts and batches: at least ``n_threads_batch``; None: the same.

        Raises
        ------
        ValueError
            If a pool has fewer threads than the context computes with.

        Notes
        -----
        ``n_threads`` and ``n_threads_batch`` still say how many of a pool's threads compute.
        """
        pools = [pool] if pool_batch is None else [pool, pool_batch]
        for each in pools:
            if not isinstance(each, ThreadPool):
                raise TypeError(f"pool is {shown(each)}; it takes a ThreadPool")
        with self._exclusive() as native:
            pointers = [each._open() for each in pools]
            sizes = pools[0]._n_threads, pools[-1]._n_threads
            # With OpenMP, ggml looks for the place of each thread that computes, also beyond the pool's.
            computing = lib.llama_n_threads(native), lib.llama_n_threads_batch(native)
            for name, count, size in zip(_THREADS, computing, sizes, strict=True):
                if count > size:
                    raise ValueError(
                        f"the n_threads of the pool is {size}, but the context's {name} is {count}: make a pool of at "
                        f"least {count}, or call set_n_threads before"
                    )
            for each, pointer in zip(pools, pointers, strict=True):
                if each not in self._pools:
                    lib.moebind_hold(native, pointer)
                    self._pools.append(each)
            self._update_extra_locks()
            lib.llama_attach_threadpool(native, pointers[0], pointers[-1])
            self._pool_sizes = sizes

    def detach_threadpool(self) -> None:
        """Compute with threads of its own again (``llama_detach_threadpool``)."""
        with self._exclusive() as native:
            lib.llama_detach_threadpool(native)
            self._pool_sizes = None

    def synchronize(self) -> None:
        """Wait until everything is computed; reading outputs also waits (``llama_synchronize``)."""
        with self._exclusive() as native:
            lib.llama_synchronize(native)

    def abort(self) -> None:
        """Stop the running computation, which raises :class:`AbortedError`. Any thread may call this at any time.

        If none is running, the next :meth:`decode` is stopped; :meth:`generate` ignores calls from before it began.
        Only the CPU checks while it computes: a device finishes the work that it was given.
        """
        self._open()
        lib.moebind_hooks_abort(self._hooks.pointer)

    def timings(self) -> Timings:
        """How long computing has taken so far (``llama_perf_context``)."""
        with self._exclusive() as native:
            cache, before = read_moe_cache(native), self._moe_cache_before
            if cache is not None and before is not None:
                cache = cache._since(before)
            return read_timings(lib.llama_perf_context(native), cache, self._speculated, self._written)

    def reset_timings(self) -> None:
        """Start measuring anew (``llama_perf_context_reset``)."""
        with self._exclusive() as native:
            lib.llama_perf_context_reset(native)
            self._speculated, self._written = SpeculativeCounts(), WrittenCounts()
            self._moe_cache_before = read_moe_cache(native)

    def moe_cache_stats(self) -> MoeCacheStats | None:
        """What the cache of experts counted since the context was made; None if it has none.

        Notes
        -----
        The cache is that of :attr:`ContextParams.moe_cache_size`. llama.cpp itself only logs
        these counters, when the context is freed.
        """
        with self._exclusive() as native:
            return read_moe_cache(native)

    def memory_breakdown(self) -> MemoryBreakdown:
        """Where the bytes of the context and its model are; printing it gives a table."""
        with self._exclusive() as native:
            return read_breakdown(native)
