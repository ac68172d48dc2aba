"""The KV cache: the part of ``Context`` that works on what was decoded.

Whether a cache fits this machine is checked before the context is made, in ``creation.py``.
"""

from __future__ import annotations

from typing import SupportsIndex

from moebind._core import checks
from moebind._core.context_base import ContextBase
from moebind._core.native import CData, lib
from moebind.context.batch import POS_MAX
from moebind.errors import MoebindError

__all__ = ["KvCache"]


class KvCache(ContextBase):
    """The part of a context that keeps keys and values, sequence by sequence. :class:`moebind.Context` has it.

    Ranges of positions are ``[p0, p1)``; None means from the first, or to the last.
    """

    #: Whether the graph that moves cached keys has a kernel for their type.
    _can_shift_type = True

    @staticmethod
    def _range(p0: SupportsIndex | None, p1: SupportsIndex | None) -> tuple[int, int]:
        first = -1 if p0 is None else checks.integer("p0", p0, 0, POS_MAX)
        last = -1 if p1 is None else checks.integer("p1", p1, 0, POS_MAX + 1)
        return first, last

    def kv_cache_clear(self, data: bool = True) -> None:
        """Forget all sequences (``llama_memory_clear``).

        Parameters
        ----------
        data
            Overwrite the buffers too, not only the records of what they hold.
        """
        overwrite = checks.boolean("data", data)
        with self._exclusive() as native:
            self._changes(range(self.n_seq_max))
            lib.llama_memory_clear(lib.llama_get_memory(native), overwrite)
            self._sharing.clear()

    def kv_cache_seq_rm(
        self, seq_id: SupportsIndex, p0: SupportsIndex | None = None, p1: SupportsIndex | None = None
    ) -> bool:
        """Forget a range of a sequence (``llama_memory_seq_rm``).

        Parameters
        ----------
        seq_id
            The sequence; -1: all of them.
        p0, p1
            The range of positions.

        Returns
        -------
        bool
            False if the model's memory cannot forget a part; a whole sequence can always be forgotten.
        """
        seq, (first, last) = self._seq("seq_id", seq_id, -1), self._range(p0, p1)
        with self._exclusive() as native:
            self._changes(range(self.n_seq_max) if seq < 0 else [seq])
            return bool(lib.llama_memory_seq_rm(lib.llama_get_memory(native), seq, first, last))

    def kv_cache_seq_cp(
        self,
        seq_id_src: SupportsIndex,
        seq_id_dst: SupportsIndex,
        p0: SupportsIndex | None = None,
        p1: SupportsIndex | None = None,
    ) -> None:
        """Copy a range of one sequence to another; in a unified cache they share it (``llama_memory_seq_cp``).

        Raises
        ------
        ValueError
            If only a part is asked for and the sequences have caches of their own (``kv_unified=False``).
        """
        source, target = self._seq("seq_id_src", seq_id_src), self._seq("seq_id_dst", seq_id_dst)
        first, last = self._range(p0, p1)
        if not self._unified and source != target and (first > 0 or last >= 0):
            raise ValueError(
                f"positions {p0} to {p1}: sequences with caches of their own can only be copied whole; make the "
                "context with kv_unified=True to copy parts"
            )
        with self._exclusive() as native:
            if source != target:
                self._changes([target])
                self._shares([source, target])
            lib.llama_memory_seq_cp(lib.llama_get_memory(native), source, target, first, last)

    def kv_cache_seq_keep(self, seq_id: SupportsIndex) -> None:
        """Forget all sequences but this one (``llama_memory_seq_keep``)."""
        seq = self._seq("seq_id", seq_id)
        with self._exclusive() as native:
            self._changes(other for other in range(self.n_seq_max) if other != seq)
            memory = lib.llama_get_memory(native)
            lib.llama_memory_seq_keep(memory, seq)
            if not self._unified:
                # Where sequences have caches of their own, llama.cpp looks into that of this one only.
                for other in range(self.n_seq_max):
                    if other != seq:
                        lib.llama_memory_seq_rm(memory, other, -1, -1)

    def kv_cache_seq_add(
        self,
        seq_id: SupportsIndex,
        p0: SupportsIndex | None,
        p1: SupportsIndex | None,
        delta: SupportsIndex,
    ) -> None:
        """Move a range of positions (``llama_memory_seq_add``).

        In a unified cache, what the sequence shares with others moves for all of them.

        Parameters
        ----------
        seq_id
            The sequence.
        p0, p1
            The range of positions.
        delta
            How far; negative moves them towards the beginning, and what would come before it is forgotten.

        Raises
        ------
        ValueError
            If a position would go beyond the last that there can be.
        MoebindError
            If this model's memory cannot be moved (:meth:`kv_cache_can_shift`).
        """
        seq, (first, last) = self._seq("seq_id", seq_id), self._range(p0, p1)
        far = checks.integer("delta", delta, -POS_MAX)
        with self._exclusive() as native:
            memory = self._shiftable(native)
            highest = int(lib.llama_memory_seq_pos_max(memory, seq))
            if last >= 0:
                highest = min(highest, last - 1)
            if highest >= max(first, 0) and highest + far > POS_MAX:
                most = POS_MAX - highest
                raise ValueError(f"delta is {far}, at most {most}; position {highest} would go beyond {POS_MAX}")
            self._moves(seq)
            lib.llama_memory_seq_add(memory, seq, first, last, far)

    def kv_cache_seq_div(
        self, seq_id: SupportsIndex, p0: SupportsIndex | None, p1: SupportsIndex | None, d: SupportsIndex
    ) -> None:
        """Divide a range of positions by an integer, at least 1 (``llama_memory_seq_div``).

        In a unified cache, what the sequence shares with others moves for all of them.

        Raises
        ------
        MoebindError
            If this model's memory cannot be moved (:meth:`kv_cache_can_shift`).
        """
        seq, (first, last) = self._seq("seq_id", seq_id), self._range(p0, p1)
        divisor = checks.integer("d", d, 1)
        with self._exclusive() as native:
            memory = self._shiftable(native)
            self._moves(seq)
            lib.llama_memory_seq_div(memory, seq, first, last, divisor)

    def _moves(self, seq: int) -> None:
        """Note that cells of a sequence move. The caller holds the context."""
        self._changes(self._sharing if seq in self._sharing else [seq])

    def kv_cache_seq_pos_min(self, seq_id: SupportsIndex) -> int:
        """The first position that a sequence has in the cache, -1 if it is empty (``llama_memory_seq_pos_min``)."""
        seq = self._seq("seq_id", seq_id)
        with self._exclusive() as native:
            return int(lib.llama_memory_seq_pos_min(lib.llama_get_memory(native), seq))

    def kv_cache_seq_pos_max(self, seq_id: SupportsIndex) -> int:
        """The last position that a sequence has in the cache, -1 if it is empty (``llama_memory_seq_pos_max``)."""
        seq = self._seq("seq_id", seq_id)
        with self._exclusive() as native:
            return int(lib.llama_memory_seq_pos_max(lib.llama_get_memory(native), seq))

    def kv_cache_can_shift(self) -> bool:
        """Whether positions can be moved (``llama_memory_can_shift``)."""
        with self._exclusive() as native:
            return self._can_shift(native)

    def _can_shift(self, native: CData) -> bool:
        memory = lib.llama_get_memory(native)
        return bool(memory) and self._can_shift_type and bool(lib.llama_memory_can_shift(memory))

    def _shiftable(self, native: CData) -> CData:
        if not self._can_shift(native):
            raise MoebindError(
                "positions cannot be moved in this context: its model's memory, or its cache's type, does not allow it"
            )
        return lib.llama_get_memory(native)
