"""Which prompt has which sequence, for ``generate_many``, and whose prefix it goes on from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.native import CData, lib
from moebind.context.pieces import Record, Writer
from moebind.context.prepare import Request, common_prefix, sees_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind.context.batch import Batch
    from moebind.sampling.sampler import Sampler

__all__ = ["Run", "Schedule", "pack"]

#: Prompts that have fewer tokens than this in common do not wait for each other.
SHARED_MIN = 16
#: Where sequences have caches of their own, a copy moves a whole one. To move a token's keys and values takes less than
#: a five-hundredth of computing it, with any model that we know; half of that is room enough.
CACHE_PER_SHARED = 256


@dataclass(eq=False)
class Run:
    """One prompt: its tokens, its sequence, and how far it is computed."""

    index: int
    request: Request
    writer: Writer
    #: None: always the likeliest.
    sampler: Sampler | None
    #: What generating it takes, for whoever asks.
    record: Record
    #: Those of the prompt, then those that were generated.
    tokens: list[int]
    #: Its sequence while it has one.
    seq: int = -1
    #: How many of its tokens are in the cache.
    n_past: int = 0
    #: Another run, which computes the first ``n_shared`` tokens of both; until then, this one waits.
    source: Run | None = None
    n_shared: int = 0
    #: Whether what drafts knows that it has a sequence, and its tokens.
    fresh: bool = False
    begun: bool = False
    #: What is computed after its last token, in case it comes.
    drafted: list[int] = field(default_factory=list)


@dataclass
class Schedule:
    """The prompts that have a sequence, those that wait for one, and those that were not looked at yet.

    ``unified`` is whether all sequences share one cache, ``n_ctx_seq`` how many tokens one can have, ``shares`` whether
    a prefix is the same whatever follows it, ``window`` the model's sliding window, 0 without one.
    """

    prompts: Iterator[Run]
    n_seq_max: int
    unified: bool
    n_ctx_seq: int
    shares: bool = True
    window: int = 0
    #: Sequences that no prompt has, and the tokens that are left in them.
    free: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    #: In the order in which they began.
    running: list[Run] = field(default_factory=list)
    waiting: deque[Run] = field(default_factory=deque)
    #: Whether the cache has no room for another prompt until one ends.
    full: bool = False

    def __post_init__(self) -> None:
        self.free = {seq: np.empty(0, np.int32) for seq in range(self.n_seq_max)}

    def fill(self, memory: CData) -> list[Run]:
        """Give free sequences to prompts, and empty those that stay free.

        Returns those of which nothing is asked.
        """
        nothing = []
        while self.free and not self.full:
            run = self.waiting.popleft() if self.waiting else next(self.prompts, None)
            if run is None:
                break
            if run.request.limit == 0:
                nothing.append(run)
                continue
            self._begin(memory, run)
        for seq, left in self.free.items():
            if left.size:
                lib.llama_memory_seq_rm(memory, seq, -1, -1)
                self.free[seq] = left[:0]
        return nothing

    def _begin(self, memory: CData, run: Run) -> None:
        """Give it a sequence, with as much of its tokens as can be had from others."""
        # The last token is computed in any case, for its logits.
        wanted = np.array(run.tokens[:-1], np.int32)
        own, seq = max((common_prefix(left, wanted), seq) for seq, left in self.free.items())
        del self.free[seq]
        others = [(common_prefix(other.request.tokens, wanted), other) for other in self.running]
        n, other = max(others, key=lambda pair: (pair[0], pair[1].n_past), default=(0, None))
        run.seq, run.n_past, run.source = seq, 0, None
        run.fresh, run.begun, run.drafted = True, False, []
        self.running.append(run)
        if self.shares and own and own >= n and self._keep(memory, seq, own):
            run.n_past = own
        else:
            lib.llama_memory_seq_rm(memory, seq, -1, -1)
            if self.shares and other is not None and n >= self._worth_copying():
                if other.n_past < n:
                    run.source, run.n_shared = other, n
                else:
                    run.n_past = self._copied(memory, other, run, n)
        run.record.n_cached = run.n_past

    def _worth_copying(self) -> int:
        return max(SHARED_MIN, 0 if self.unified else self.n_ctx_seq // CACHE_PER_SHARED)

    def hand_on(self, memory: CData) -> None:
        """Copy prefixes that are computed to those that wait for them."""
        for run in self.running:
            if run.source is not None and run.source.n_past >= run.n_shared:
                run.n_past = run.record.n_cached = self._copied(memory, run.source, run, run.n_shared)
                run.source = None

    def _copied(self, memory: CData, source: Run, target: Run, n: int) -> int:
        """Copy the first ``n`` tokens of a sequence into an empty one; returns how many it then has, 0 or all.

        A whole sequence can be copied in any memory. Of a part, the rest has to be forgotten again, which recurrent
        memory cannot; and of a sliding window, what its end sees may be lost.
        """
        if source.n_past > n and not sees_all(memory, source.seq, n, self.window):
            return 0
        last = n if self.unified and source.n_past > n else -1
        lib.llama_memory_seq_cp(memory, source.seq, target.seq, -1, last)
        if lib.llama_memory_seq_pos_max(memory, target.seq) >= n and not self._keep(memory, target.seq, n):
            return 0
        if lib.llama_memory_seq_pos_max(memory, target.seq) == n - 1:
            return n
        lib.llama_memory_seq_rm(memory, target.seq, -1, -1)
        return 0

    def _keep(self, memory: CData, seq: int, n: int) -> bool:
        """Forget all but the first ``n`` tokens of a sequence; where this cannot be, all of them, and return False."""
        if sees_all(memory, seq, n, self.window) and lib.llama_memory_seq_rm(memory, seq, n, -1):
            return True
        lib.llama_memory_seq_rm(memory, seq, -1, -1)
        return False

    def leave(self, run: Run) -> None:
        """Take the sequence back. What is in it may be the beginning of the next prompt."""
        self.running.remove(run)
        self.free[run.seq] = np.array(run.tokens[: run.n_past], np.int32)

    def give_up(self) -> Run:
        """Let the prompt that began last wait: the cache is full. It is computed again from its beginning."""
        last = self.running[-1]
        self.leave(last)
        self.waiting.appendleft(last)
        self.full = True
        return last


def pack(running: list[Run], batch: Batch) -> list[tuple[Run, int, int | None]]:
    """Fill the batch with what is to be computed next: single tokens first, then as much of the prompts as fits.

    A prompt from which others wait for a prefix stops at its end, where its whole sequence is that prefix. Drafts come
    right after what they were drafted for; the caller leaves room for them.
    Returns each prompt in it, how many of its tokens, and where the last one of them is, if it has an output.
    """
    at, parts = 0, list[tuple[Run, int, "int | None"]]()
    batch._logits[:] = 0
    ends = {id(run): len(run.tokens) for run in running}
    for run in running:
        if run.source is not None:
            ends[id(run.source)] = min(ends[id(run.source)], run.n_shared)
    able = [run for run in running if run.source is None]
    for run in sorted(able, key=lambda run: len(run.tokens) - run.n_past):
        tokens = run.tokens[run.n_past : min(run.n_past + batch.capacity - at, ends[id(run)])]
        if not tokens:
            break
        n = len(tokens)
        complete = run.n_past + n == len(run.tokens)
        tokens += run.drafted
        end = at + len(tokens)
        batch._token[at:end] = tokens
        batch._pos[at:end] = range(run.n_past, run.n_past + len(tokens))
        batch._seq_id[at:end, 0] = run.seq
        last = at + n - 1
        batch._logits[last:end] = complete
        parts.append((run, n, last if complete else None))
        at = end
    batch._n_tokens = at
    return parts
