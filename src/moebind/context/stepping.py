"""Computing many texts, one batch after another, without a thread: what ``generate_many`` and ``Engine`` stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.native import CData, ffi, lib
from moebind.context.batch import Batch
from moebind.context.draft_many import ManyDrafts
from moebind.context.pieces import Piece
from moebind.context.schedule import Run, Schedule, pack
from moebind.context.scores import Score, score
from moebind.context.speculate import choose_drafted
from moebind.errors import NoKvSlotError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind.backend.timings import Counted
    from moebind.context.generate import Generation
    from moebind.context.schedule import Loras
    from moebind.context.speculative import Speculative

__all__ = ["Progress", "Steps"]


@dataclass
class Progress:
    """What a batch was for one text: its next pieces, and what its sampler raised after them."""

    run: Run
    pieces: list[Piece]
    error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.error is not None or self.pieces[-1].stop_reason is not None

    def taken_error(self) -> BaseException | None:
        """What its sampler raised. It is not kept here: its traceback leads to frames that have this."""
        error, self.error = self.error, None
        return error


class Steps:
    """Texts that are computed side by side, batch by batch, in all sequences of a context.

    It has no thread, and no lock but the context's: one thread at a time may use it.

    Parameters
    ----------
    context
        Whose sequences are taken over, and emptied.
    runs
        The texts, which are taken when there is room; more can be added to the ``schedule``.
    follower
        Of what drafts for them, the one that may look at each computation.
    keeps
        Whether what ended stays in the cache while there is room.
    n_prompt
        How many tokens of prompts are computed together with tokens of texts that go on; None: as many as fit.
    use
        Has the context, which is held, use adapters; None: texts have none.
    """

    def __init__(
        self,
        context: Generation,
        runs: Iterator[Run],
        follower: Speculative | None = None,
        *,
        keeps: bool = False,
        n_prompt: int | None = None,
        use: Callable[[CData, Loras], object] | None = None,
    ) -> None:
        self._context, self._use = context, use
        self._batch = Batch(_batch_room(context))
        self._drafts = ManyDrafts(context, follower)
        #: Those of the last batch, whatever became of it.
        self.computed: list[Run] = []
        with context._exclusive() as native:
            # Without causal attention, what comes later changes what came before.
            causal = bool(lib.llama_get_causal_attn(native))
            shares, window = causal and not self._drafts.follows, int(lib.llama_model_n_swa(context._model._open()))
            self._n_prompt = n_prompt if causal else None
            self._n_prompt_alone = context.n_ubatch
            n_seq_max, n_ctx_seq = context._n_seq_max, context.n_ctx_seq
            self.schedule = Schedule(runs, n_seq_max, context._unified, n_ctx_seq, shares, window, keeps)
            self._loras = self.schedule.loras
            self._generation = context._take_over(range(n_seq_max))
            self._forget(native, range(n_seq_max))

    def fill(self) -> list[Run]:
        """Give free sequences to texts that wait; returns those of which nothing is asked.

        Raises
        ------
        ClosedError
            If another call took over a sequence, or changed it.
        LoraError
            If adapters cannot be used; those who want them have their sequences.
        """
        context, schedule = self._context, self.schedule
        if schedule.is_settled:
            return []
        with context._exclusive() as native:
            self._must_own_all()
            nothing = schedule.fill(lib.llama_get_memory(native))
            self._drafts.settle(schedule.running)
            if self._use is not None and schedule.loras != self._loras:
                wanted, schedule.loras = schedule.loras, self._loras
                self._use(native, wanted)
                schedule.loras = self._loras = wanted
        return nothing

    def able(self) -> list[Run]:
        """The texts that can go on now."""
        return [run for run in self.schedule.running if not run.paused]

    def advance(self) -> list[Progress]:
        """Compute one batch; gives the next pieces of each text that was computed to its end so far.

        A text that ended, or whose sampler failed, has no sequence any more.

        Raises
        ------
        NoKvSlotError
            If the cache has no room for a single text.
        Exception
            Whatever ends a computation: :meth:`rewind`, or :meth:`drop` those of :attr:`computed`.
        """
        context, drafts, batch, schedule = self._context, self._drafts, self._batch, self.schedule
        may_draft, drafted = True, False
        while True:
            self.computed = able = self.able()
            try:
                with context._exclusive() as native, drafts.measured(able):
                    self._must_own_all()
                    drafted = drafts.draft(able, batch.capacity) if may_draft else False
                    parts = pack(able, batch, self._room(able))
                    ends = [(run, n, at) for run, n, at in parts if at is not None]
                    n_outputs = batch.n_tokens
                    if not context._embeddings:
                        n_outputs = len(ends) + sum([len(run.drafted) for run, _, _ in ends])
                    before = context._written.counted(native)
                    context._compute(native, batch._struct(), n_outputs)
                    context._flags = batch.logits.copy()
                    drafts.computed(batch)
                    for run, n, _ in parts:
                        run.n_past += n
                    memory = lib.llama_get_memory(native)
                    # Now, while the sequence of each prompt that others wait for is no longer than their prefix.
                    schedule.hand_on(memory)
                    made = self._choose(native, ends)
                    self._count(native, before, ends, made)
                    for each in made:
                        if each.ended:
                            schedule.leave(memory, each.run)
                    return made
            except NoKvSlotError:
                if may_draft and drafted:
                    may_draft = False
                    for run in able:
                        run.drafted = []
                elif not self._make_room():
                    raise

    def _count(self, native: CData, before: Counted, ends: list[tuple[Run, int, int]], made: list[Progress]) -> None:
        """Note for the timings what was computed for texts that go on, or for a prompt, where llama.cpp cannot tell."""
        n_computed = n_written = 0
        for (run, n, _), each in zip(ends, made, strict=True):
            n_new = len(each.pieces)
            if n == 1 and len(run.tokens) - n_new > run.record.n_prompt:
                n_computed += 1 + len(run.drafted)
                n_written += n_new
        if n_computed:
            self._context._written.add(native, before, n_computed, n_written)
        elif ends:
            self._context._written.add_prompt(native, before)

    def _room(self, able: list[Run]) -> int | None:
        """How many tokens of prompts the next batch takes."""
        if self._n_prompt is None:
            return None
        replies = any(len(run.tokens) - run.n_past == 1 for run in able)
        return self._n_prompt if replies else self._n_prompt_alone

    def _make_room(self) -> bool:
        """Have the cache hold less, if it can: first of what is kept, then of what goes on."""
        schedule = self.schedule
        with self._context._exclusive() as native:
            self._must_own_all()
            memory = lib.llama_get_memory(native)
            if schedule.evict(memory):
                return True
            if len(schedule.running) == 1:
                return False
            schedule.give_up(memory)
            return True

    def _choose(self, native: CData, ends: list[tuple[Run, int, int]]) -> list[Progress]:
        """The pieces that come after these outputs, and after what was drafted. The caller holds the context."""
        if not ends:
            return []
        logits = self._logits_of(native, ends)
        likeliest = self._likeliest_of(logits) if any(run.sampler is None for run, _, _ in ends) else []
        chosen, row = list[Progress](), 0
        for run, _, at in ends:
            error: BaseException | None
            try:
                pieces, error = self._pieces_of(native, run, at, row, logits, likeliest)
            except BaseException as raised:  # it ends its own text
                pieces, error = [], raised
            row += 1 + len(run.drafted)
            if pieces and (run.drafted or not run.begun):
                self._drafts.chosen(native, run, len(pieces) - 1)
            for piece in pieces:
                run.tokens.append(piece.token)
            chosen.append(Progress(run, pieces, error))
            del error  # so that this frame, which its traceback leads to, has it no longer than who takes it
        return chosen

    def _pieces_of(
        self, native: CData, run: Run, at: int, row: int, logits: NDArray[np.float32], likeliest: list[int]
    ) -> tuple[list[Piece], BaseException | None]:
        """The pieces of one text, whose outputs begin at ``at``, and in ``row``; and what its sampler raised then."""
        context, sampler, n_top = self._context, run.sampler, run.request.n_top
        if n_top is None and not run.drafted:  # as most are, where Python's time counts
            token = likeliest[row] if sampler is None else context._sample_with(sampler, native, at)
            return [run.writer.take(token)], None

        def choose(native: CData, place: int) -> tuple[int, Score | None]:
            of_it = row + place - at
            token = likeliest[of_it] if sampler is None else context._sample_with(sampler, native, place)
            return token, None if n_top is None else score(context._model, logits[of_it], token, n_top)

        return choose_drafted(native, choose, run.writer, run.drafted, at)

    def _logits_of(self, native: CData, ends: list[tuple[Run, int, int]]) -> NDArray[np.float32]:
        """The logits after these, and after what was drafted: all outputs, unless every token has one."""
        shape = self._context._n_outputs, self._context._model._n_vocab
        memory = ffi.buffer(lib.llama_get_logits(native), 4 * shape[0] * shape[1])
        logits = np.frombuffer(memory, np.float32).reshape(shape)
        if not self._context._embeddings:
            return logits
        return logits[[at + index for run, _, at in ends for index in range(len(run.drafted) + 1)]]

    def _likeliest_of(self, logits: NDArray[np.float32]) -> list[int]:
        suppress = self._context._suppress
        if suppress is not None:
            logits = logits.copy()
            logits[:, suppress] = -np.inf
        likeliest: list[int] = logits.argmax(axis=1).tolist()
        return likeliest

    def cancel(self, run: Run) -> None:
        """Forget a text, which may have a sequence, or wait, or neither."""
        with self._context._exclusive() as native:
            self.schedule.cancel(lib.llama_get_memory(native), run)

    def rewind(self) -> None:
        """Go back to before a computation that was aborted, to do it again."""
        with self._context._exclusive() as native:
            self._must_own_all()
            for run in self.computed:
                if run.source is None:
                    self.schedule.rewind(lib.llama_get_memory(native), run)

    def drop(self, run: Run) -> None:
        """Forget a text for whom a computation failed, and what the cache has of it."""
        with self._context._exclusive() as native:
            memory = lib.llama_get_memory(native)
            if run.seq >= 0:
                self.schedule.drop(memory, run)
            else:
                self.schedule.cancel(memory, run)

    def close(self) -> None:
        """Empty the sequences that still belong to these texts."""
        context = self._context
        if not context.closed:
            with context._exclusive() as native:
                seqs = range(context._n_seq_max)
                self._forget(native, [seq for seq in seqs if context._owners[seq] == self._generation])

    def _forget(self, native: CData, seq_ids: Iterable[int]) -> None:
        for seq in seq_ids:
            self._context._history.pop(seq, None)
            lib.llama_memory_seq_rm(lib.llama_get_memory(native), seq, -1, -1)

    def _must_own_all(self) -> None:
        n_seq_max = self._context._n_seq_max
        if self._context._owners.count(self._generation) != n_seq_max:
            for seq in range(n_seq_max):
                self._context._must_own(seq, self._generation)


def _batch_room(context: Generation) -> int:
    """How many tokens a batch can have, whichever they are."""
    with context._exclusive() as native:
        room = context._n_batch
        if not lib.llama_get_causal_attn(native) or context._pools_wholes(native):
            room = min(room, context.n_ubatch)
        if context._embeddings:  # every token is an output
            room = min(room, context._n_outputs_max)
        return room
