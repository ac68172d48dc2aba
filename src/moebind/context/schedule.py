"""Which text has which sequence, for ``generate_many`` and ``Engine``, and whose prefix it goes on from."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.native import CData, lib
from moebind.context.pieces import Record, Writer
from moebind.context.prepare import Request, common_prefix, sees_all

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from moebind.context.batch import Batch
    from moebind.context.decode import Decoding
    from moebind.context.speculative import Speculative
    from moebind.sampling.sampler import Sampler

__all__ = ["Loras", "Run", "Schedule", "pack"]

#: Prompts that have fewer tokens than this in common do not wait for each other.
SHARED_MIN = 16
#: Where sequences have caches of their own, a copy moves a whole one. To move a token's keys and values takes less than
#: a five-hundredth of computing it, with any model that we know; half of that is room enough.
CACHE_PER_SHARED = 256

#: Adapters and their scales.
Loras = tuple[tuple[CData, float], ...]


@dataclass(eq=False)
class Run:
    """One text: its tokens, its sequence, and how far it is computed."""

    index: int
    request: Request
    writer: Writer
    #: None: always the likeliest.
    sampler: Sampler | None
    #: What generating it takes, for whoever asks.
    record: Record
    #: Those of the prompt, then those that were generated.
    tokens: list[int]
    #: What drafts for it.
    speculative: Speculative | None = None
    #: The lowest goes first; then the lowest index.
    rank: int = 0
    #: What it is computed with.
    loras: Loras = ()
    #: Its sequence while it has one.
    seq: int = -1
    #: How many of its tokens are in the cache.
    n_past: int = 0
    #: Another run, which computes the first ``n_shared`` tokens of both; until then, this one waits.
    source: Run | None = None
    n_shared: int = 0
    #: Whether its next token is not wanted now. All before it are computed.
    paused: bool = False
    #: Whether what drafts knows that it has a sequence, and its tokens.
    fresh: bool = False
    begun: bool = False
    #: Whether something may be drafted for it, now and later.
    may_draft: bool = True
    #: Whether it waits for a sequence.
    waits: bool = False
    #: What is computed after its last token, in case it comes.
    drafted: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, index: int, request: Request, context: Decoding, speculative: Speculative | None = None) -> Self:
        """The text that is asked for, of which nothing is computed."""
        sampler = request.sampler()
        if sampler is not None and sampler._is_greedy:
            sampler = None
        record = Record(request.tokens.size, "length" if request.limit == 0 else None)
        return cls(index, request, request.writer(context), sampler, record, request.tokens.tolist(), speculative)

    @property
    def place(self) -> tuple[int, int]:
        """Its place in the queue."""
        return self.rank, self.index

    def anew(self) -> None:
        """Have all of its tokens computed, since the cache has none of them."""
        self.n_past, self.source = 0, None
        self.fresh, self.begun, self.drafted = True, False, []


@dataclass
class Schedule:
    """The texts that have a sequence, those that wait for one, and those that were not looked at yet.

    ``unified`` is whether all sequences share one cache, ``n_ctx_seq`` how many tokens one can have, ``shares`` whether
    a prefix is the same whatever follows it, ``window`` the model's sliding window, 0 without one. ``keeps`` is whether
    what ended stays in the cache while there is room, for texts that begin alike.
    """

    prompts: Iterator[Run]
    n_seq_max: int
    unified: bool
    n_ctx_seq: int
    shares: bool = True
    window: int = 0
    keeps: bool = False
    #: Sequences that no text has, and the tokens that are left in them; those that were left last come last.
    free: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    #: In the order in which they began.
    running: list[Run] = field(default_factory=list)
    #: A heap, by their places. The first one waits; others may have been cancelled.
    waiting: list[tuple[tuple[int, int], Run]] = field(default_factory=list)
    #: Whether the cache has no room for another text until one ends.
    full: bool = False
    #: Whether there are no more ``prompts``.
    taken: bool = False
    #: What all that run are computed with.
    loras: Loras = ()

    def __post_init__(self) -> None:
        self.free = {seq: np.empty(0, np.int32) for seq in range(self.n_seq_max)}

    def add(self, run: Run) -> None:
        """Let a text wait for a sequence."""
        run.waits = True
        heapq.heappush(self.waiting, (run.place, run))

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to :meth:`fill`, and no text that is new."""
        if self.waiting or (self.free and not (self.keeps and self.taken)):
            return False
        return not any(run.fresh for run in self.running)

    def fill(self, memory: CData) -> list[Run]:
        """Give free sequences to texts, and empty those that stay free.

        Returns those of which nothing is asked.
        """
        nothing = []
        while (self.free and not self.full) or (self.waiting and self._put_off(memory)):
            run = self._next_waiting() if self.waiting else next(self.prompts, None)
            if run is None:
                self.taken = True
                break
            if run.request.limit == 0:
                nothing.append(run)
                continue
            if run.loras != self.loras and not self._change_adapters(memory, run):
                break
            self._begin(memory, run)
        if not self.keeps:
            while self.evict(memory):
                pass
        return nothing

    def _next_waiting(self) -> Run:
        run = heapq.heappop(self.waiting)[1]
        run.waits = False
        self._forget_cancelled()
        return run

    def _forget_cancelled(self) -> None:
        while self.waiting and not self.waiting[0][1].waits:
            heapq.heappop(self.waiting)

    def _put_off(self, memory: CData) -> bool:
        """Take its sequence from a text that is paused; returns whether there is one. Whoever resumes it adds it."""
        paused = [run for run in self.running if run.paused]
        if paused:
            self.leave(memory, max(paused, key=lambda run: run.place))
        return bool(paused)

    def _change_adapters(self, memory: CData, run: Run) -> bool:
        """Change what is computed with to that of a text; while others go on with theirs, it waits: False.

        Nobody overtakes it meanwhile, so that its turn comes.
        """
        while self._put_off(memory):
            pass
        if self.running:
            self.add(run)
            return False
        while self.evict(memory):
            pass
        self.loras = run.loras
        return True

    def _begin(self, memory: CData, run: Run) -> None:
        """Give it a sequence, with as much of its tokens as can be had from others."""
        # The last token is computed in any case, for its logits.
        wanted = np.array(run.tokens[:-1], np.int32)
        own, seq = max((common_prefix(left, wanted), seq) for seq, left in self.free.items())
        others = [(common_prefix(other.request.tokens, wanted), other) for other in self.running]
        n, other = max(others, key=lambda pair: (pair[0], pair[1].n_past), default=(0, None))
        run.anew()
        best = own if self.shares and own >= n else 0
        left = self.free[seq]
        # What else a sequence has stays there, if it is worth it, for whoever goes on from that.
        spares = self.keeps and len(self.free) > 1 and left.size - best >= SHARED_MIN
        if best and not spares:
            del self.free[seq]
            run.seq = seq
            run.n_past = best if self._keep(memory, seq, best) else 0
        elif best >= self._worth_copying():
            self.free[seq] = self.free.pop(seq)  # used just now
            self._take(memory, run, self._spare(seq))
            run.n_past = self._copied(memory, (seq, left.size), run.seq, best)
        else:
            self._take(memory, run, self._spare(-1))
        if not run.n_past and self.shares and other is not None and n >= self._worth_copying():
            if other.n_past < n:
                run.source, run.n_shared = other, n
            else:
                run.n_past = self._copied(memory, (other.seq, other.n_past), run.seq, n)
        run.record.n_cached = run.n_past
        self.running.append(run)

    def _spare(self, other: int) -> int:
        """The free sequence, besides another one, of which least is lost: an empty one, or that left longest ago."""
        return min((seq for seq in self.free if seq != other), key=lambda seq: self.free[seq].size > 0)

    def _take(self, memory: CData, run: Run, seq: int) -> None:
        """Give a free sequence to a text, and empty it."""
        run.seq = seq
        lib.llama_memory_seq_rm(memory, seq, -1, -1)
        del self.free[seq]

    def _worth_copying(self) -> int:
        return max(SHARED_MIN, 0 if self.unified else self.n_ctx_seq // CACHE_PER_SHARED)

    def hand_on(self, memory: CData) -> None:
        """Copy prefixes that are computed to those that wait for them."""
        for run in self.running:
            source = run.source
            if source is not None and source.n_past >= run.n_shared:
                run.n_past = self._copied(memory, (source.seq, source.n_past), run.seq, run.n_shared)
                run.record.n_cached = run.n_past
                run.source = None

    def _copied(self, memory: CData, source: tuple[int, int], target: int, n: int) -> int:
        """Copy the first ``n`` tokens of a sequence, which has so many, into an empty one.

        Returns how many that then has, 0 or all. A whole sequence can be copied in any memory. Of a part, the rest has
        to be forgotten again, which recurrent memory cannot; and of a sliding window, what its end sees may be lost.
        """
        seq, n_past = source
        if n_past > n and not sees_all(memory, seq, n, self.window):
            return 0
        last = n if self.unified and n_past > n else -1
        lib.llama_memory_seq_cp(memory, seq, target, -1, last)
        if lib.llama_memory_seq_pos_max(memory, target) >= n and not self._keep(memory, target, n):
            return 0
        if lib.llama_memory_seq_pos_max(memory, target) == n - 1:
            return n
        lib.llama_memory_seq_rm(memory, target, -1, -1)
        return 0

    def _keep(self, memory: CData, seq: int, n: int) -> bool:
        """Forget all but the first ``n`` tokens of a sequence; where this cannot be, all of them, and return False."""
        if sees_all(memory, seq, n, self.window) and lib.llama_memory_seq_rm(memory, seq, n, -1):
            return True
        lib.llama_memory_seq_rm(memory, seq, -1, -1)
        return False

    def leave(self, memory: CData, run: Run) -> None:
        """Take the sequence back. What is in it may be the beginning of another text."""
        self.running.remove(run)
        heirs = sorted((other for other in self.running if other.source is run), key=lambda other: -other.n_shared)
        for other in heirs:  # one of them goes on with what they wait for
            other.source = heirs[0]
            other.n_shared = min(other.n_shared, heirs[0].n_shared)
        if heirs:
            heirs[0].source = None
            if run.n_past:
                heirs[0].n_past = self._copied(memory, (run.seq, run.n_past), heirs[0].seq, run.n_past)
                heirs[0].record.n_cached = heirs[0].n_past
        self.free[run.seq] = np.array(run.tokens[: run.n_past], np.int32)
        run.seq, run.source, self.full = -1, None, False

    def drop(self, memory: CData, run: Run) -> None:
        """Take the sequence back, whatever is in it, and empty it."""
        seq, run.n_past = run.seq, 0
        self.leave(memory, run)
        self._empty(memory, seq)

    def cancel(self, memory: CData, run: Run) -> None:
        """Forget a text, wherever it is."""
        if run.seq >= 0:
            self.leave(memory, run)
        else:  # it stays in the heap until it comes first: to look for it would take long, where many are cancelled
            run.waits = False
            self._forget_cancelled()

    def rewind(self, memory: CData, run: Run) -> None:
        """Have the cache hold what is known to be computed of a text, after a computation that was not completed."""
        if not self._keep(memory, run.seq, run.n_past):
            run.anew()

    def evict(self, memory: CData) -> bool:
        """Empty the free sequence that was left longest ago; returns whether there was something in one."""
        for seq, left in self.free.items():
            if left.size:
                self._empty(memory, seq)
                return True
        return False

    def _empty(self, memory: CData, seq: int) -> None:
        lib.llama_memory_seq_rm(memory, seq, -1, -1)
        self.free[seq] = self.free[seq][:0]

    def give_up(self, memory: CData) -> None:
        """Let a text wait: the cache is full. It is one that is paused, or comes last; it is computed again later."""
        last = max(self.running, key=lambda run: (run.paused, run.place))
        self.drop(memory, last)
        if not last.paused:
            self.add(last)
        self.full = True


def pack(running: list[Run], batch: Batch, n_prompt: int | None = None) -> list[tuple[Run, int, int | None]]:
    """Fill the batch with what is to be computed next: single tokens first, then as much of the prompts as fits.

    With ``n_prompt``, no more than so many tokens of prompts, at least one for each: they get equal parts, and what a
    short one leaves of its part is for the others. A prompt from which others wait for a prefix stops at its end, where
    its whole sequence is that prefix. Drafts come right after what they were drafted for; the caller leaves room for
    them.
    Returns each text in it, how many of its tokens, and where the last one of them is, if it has an output.
    """
    # Gathered first: each write into an array takes as long as all of this does for a token.
    tokens, positions, seq_ids, outputs = list[int](), list[int](), list[int](), list[int]()
    parts = list[tuple[Run, int, "int | None"]]()
    ends = {id(run): len(run.tokens) for run in running}
    for run in running:
        if run.source is not None:
            ends[id(run.source)] = min(ends[id(run.source)], run.n_shared)
    able = [run for run in running if run.source is None]
    able.sort(key=lambda run: len(run.tokens) - run.n_past)
    if n_prompt is not None:
        n_prompt = max(n_prompt, len(able))
    for n_before, run in enumerate(able):
        at = len(tokens)
        room, is_prompt = batch.capacity - at, len(run.tokens) - run.n_past > 1
        if n_prompt is not None and is_prompt:
            room = min(room, -(-n_prompt // (len(able) - n_before)))
        own = run.tokens[run.n_past : min(run.n_past + room, ends[id(run)])]
        if not own:
            break
        n = len(own)
        if n_prompt is not None and is_prompt:
            n_prompt -= n
        complete = run.n_past + n == len(run.tokens)
        own += run.drafted
        tokens += own
        positions += range(run.n_past, run.n_past + len(own))
        seq_ids += [run.seq] * len(own)
        outputs += [0] * (n - 1) + [complete] * (len(own) - n + 1)
        parts.append((run, n, at + n - 1 if complete else None))
    batch._hold(tokens, positions, seq_ids, outputs)
    return parts
