"""``ContextBase``: the fields of a context, and what each of its parts may ask of it.

``moebind.Context`` is put together from parts (decoding, outputs, cache, states, adapters, chats). Each part derives
from this class, which knows how a context is held during a native call, and who works on a sequence.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import SupportsIndex

from moebind._core import checks
from moebind._core.model_base import ModelBase
from moebind._core.native import CData, Hooks, lib
from moebind._core.owner import CallLock, Owner
from moebind.enums import GgmlType, PoolingType
from moebind.errors import ClosedError

__all__ = ["ContextBase"]


class ContextBase(Owner, metaclass=ABCMeta):
    """A context, as its parts know it. :class:`moebind.Context` is one."""

    _model: ModelBase
    _lock: CallLock
    #: Callbacks, and the flag that stops a computation.
    _hooks: Hooks
    #: RPC servers that hold parts of it.
    _servers: tuple[str, ...]
    _n_seq_max: int
    _n_batch: int
    #: The most outputs of one batch.
    _n_outputs_max: int
    #: Whether all sequences share one cache.
    _unified: bool
    #: The types of keys and values in the cache.
    _cache_types: tuple[GgmlType, GgmlType]
    #: Which tokens each sequence's cache begins with, as far as generate() knows.
    _history: dict[int, list[int]]
    #: The number of the generation that each sequence belongs to; 0: none, or it was changed since.
    _owners: list[int]
    #: Sequences that may share cells of one cache with others: what moves the cells of one moves those of all.
    _sharing: set[int]
    _n_generations = 0

    # --- during a native call ---

    @abstractmethod
    def _held(self) -> AbstractContextManager[object]:
        """Hold the context, and whatever it uses, for a native call."""

    @contextmanager
    def _exclusive(self) -> Iterator[CData]:
        """Hold the context, and open it, for a native call."""
        with self._held():
            yield self._open()

    @abstractmethod
    def _forget_outputs(self) -> None:
        """Note that the outputs of the last batch are no longer there. The caller holds the context."""

    # --- sequences ---

    def _seq(self, name: str, seq_id: SupportsIndex, low: int = 0) -> int:
        """Check a sequence's number: libllama only asserts that it is below 256."""
        return checks.integer(name, seq_id, low, self.n_seq_max - 1)

    def _take_over(self, seq_ids: Iterable[int]) -> int:
        """Let a generation begin on these sequences, and give its number. The caller holds the context."""
        self._n_generations += 1
        for seq in seq_ids:
            self._owners[seq] = self._n_generations
        return self._n_generations

    def _must_own(self, seq_id: int, generation: int) -> None:
        """Raise unless a sequence still belongs to this generation. The caller holds the context.

        Raises
        ------
        ClosedError
        """
        owner = self._owners[seq_id]
        if owner == generation:
            return
        if owner:
            raise ClosedError(
                f"another call to generate took over sequence {seq_id} of this context; finish or close one generator "
                "before you start the next, or give each a sequence or context of its own"
            )
        raise ClosedError(
            f"another call changed sequence {seq_id} of this context while text was generated in it; finish or close "
            "the generator before you change its sequence"
        )

    def _changes(self, seq_ids: Iterable[int]) -> None:
        """Note that something else than a generation changes these sequences. The caller holds the context."""
        for seq in seq_ids:
            self._history.pop(seq, None)
            self._owners[seq] = 0

    def _shares(self, seq_ids: Iterable[int]) -> None:
        """Note that these sequences share cells from now on. The caller holds the context."""
        if self._unified:
            self._sharing.update(seq_ids)

    # --- what libllama made of its parameters ---

    @property
    def n_ctx(self) -> int:
        """Tokens that the cache holds, over all sequences (``llama_n_ctx``).

        At least what ``ContextParams.n_ctx`` asked for: llama.cpp rounds it up, to a multiple of 256 for each sequence.
        """
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
    def n_rs_seq(self) -> int:
        """Snapshots of recurrent state that are kept per sequence (``llama_n_rs_seq``)."""
        return int(lib.llama_n_rs_seq(self._open()))

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
        """How token embeddings become one embedding per sequence (``llama_pooling_type``)."""
        return PoolingType(lib.llama_pooling_type(self._open()))

    @property
    def causal_attn(self) -> bool:
        """Whether tokens see only what comes before them (``llama_get_causal_attn``)."""
        return bool(lib.llama_get_causal_attn(self._open()))
