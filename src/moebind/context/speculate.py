"""The loop that generates text with drafts: several tokens are computed at once, of which those that are right stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.native import CData, lib
from moebind.context.batch import Batch
from moebind.context.drafting import Drafting, Wanted
from moebind.context.pieces import Piece, Record, Writer
from moebind.context.prepare import Request, prepare
from moebind.context.scores import Score, score
from moebind.context.speculative_judge import Judge, Step, logger
from moebind.errors import NoKvSlotError

if TYPE_CHECKING:
    from moebind.context.decode import Decoding
    from moebind.context.media import Media
    from moebind.context.speculative import Speculative
    from moebind.sampling.sampler import Sampler

__all__ = ["choose_drafted", "chooser", "cut_back", "n_drafted_max", "speculate"]

#: What chooses the token after one of the outputs of the last batch, and how likely it was.
Choose = Callable[[CData, int], "tuple[int, Score | None]"]


def chooser(context: Decoding, sampler: Sampler | None, n_top: int | None) -> Choose:
    """What chooses: a sampler, or always the likeliest. The caller holds the context."""

    def choose(native: CData, at: int) -> tuple[int, Score | None]:
        token = context._likeliest(native, at) if sampler is None else context._sample_with(sampler, native, at)
        return token, None if n_top is None else score(context._model, context._logits(native, at), token, n_top)

    return choose


def choose_drafted(
    native: CData, choose: Choose, writer: Writer, drafted: list[int], at: int
) -> tuple[list[Piece], Exception | None]:
    """Choose after a token and what was drafted after it, as long as the draft is right.

    The outputs begin at ``at``. Returns the pieces, at least one, and what a sampler raised after them. The token of
    the last one is not in the cache, or not to be. The caller holds the context.
    """
    pieces: list[Piece] = []
    for index in range(len(drafted) + 1):
        try:
            token, its_score = choose(native, at + index)
        except Exception as error:
            if not pieces:
                raise
            return pieces, error
        piece = writer.take(token)
        pieces.append(piece if its_score is None else piece._with_score(*its_score))
        if piece.stop_reason is not None or index == len(drafted) or token != drafted[index]:
            break
    return pieces, None


def n_drafted_max(context: Decoding, speculative: Speculative, n_cached: int, writer: Writer) -> int:
    """How many tokens can be drafted now: those that there is room for, and that can still be asked for."""
    most = [
        speculative._n_max,
        # The last token is computed with them, and one more is chosen after them.
        context._length_max - n_cached - 1,
        writer.n_left - 1,
        # In one computation: what a later one puts in the place of old tokens could be needed again.
        context._n_batch - 1,
        context.n_ubatch - 1,
        context._n_outputs_max - 1,
    ]
    if context._model.is_recurrent or context._model.is_hybrid:
        most.append(context.n_rs_seq)
    return int(min(most))


def cut_back(context: Decoding, native: CData, seq: int, n: int) -> bool:
    """Leave the first n tokens of a sequence in the cache; where its memory cannot do that, none, and return False."""
    memory = lib.llama_get_memory(native)
    if lib.llama_memory_seq_rm(memory, seq, n, -1):
        return True
    lib.llama_memory_seq_rm(memory, seq, -1, -1)
    return False


@dataclass
class _Text:
    """A text that is generated with drafts."""

    context: Media
    speculative: Speculative
    request: Request
    seq: int
    sampler: Sampler | None
    writer: Writer
    judge: Judge | None
    generation: int = 0
    #: The tokens in the cache, and the one that was chosen last.
    cached: list[int] = field(default_factory=list)
    token: int = -1
    #: What a sampler raised, after pieces that came before.
    error: Exception | None = None
    drafts: bool = True

    def __post_init__(self) -> None:
        self.choose = chooser(self.context, self.sampler, self.request.n_top)
        self.drafting: Drafting = self.speculative._drafting
        if self.judge is not None:
            self.judge.text_begins()
            self.drafts = self.judge.drafts or self.drafting.anytime
        #: Whether nothing but the next token is wanted of a computation.
        self.greedy = self.sampler is None and self.request.n_top is None
        self.step = Batch(1)
        self.step.extend([0], 0, self.seq, True)

    def begin(self, reuse_prefix: bool, record: Record) -> Piece:
        scores: list[Score | None] = []

        def first(native: CData) -> int:
            token, its_score = self.choose(native, -1)
            scores.append(its_score)
            return token

        drafting = self.drafting if self.drafts else None
        try:
            self.generation, self.cached, self.token = prepare(
                self.context, self.request, self.seq, reuse_prefix, first, record, drafting
            )
        except BaseException:
            self.drafting.forget(self.seq)
            raise
        piece = self.writer.take(self.token)
        return piece if scores[0] is None else piece._with_score(*scores[0])

    def go_on(self) -> list[Piece]:
        """Compute once, and return the pieces that come of it."""
        context, judge = self.context, self.judge
        if judge is None:
            return self._step(self._draft())
        step = Step(judge, context._speculated, self.drafting)
        drafted = self._draft()
        pieces = self._step(drafted)
        if not step.ended(len(pieces), drafted=bool(drafted)):
            self.drafts = self.drafts and self.drafting.anytime
        return pieces

    def _step(self, drafted: list[int]) -> list[Piece]:
        context = self.context
        following = None
        if not drafted and self.greedy and not (self.drafts and self.drafting.follows):
            following = context._likeliest_after(context._open(), self.step._struct(), self.token, len(self.cached))
        if following is None:
            return self._verify(drafted)
        self.cached.append(self.token)
        self.token = following
        return [self.writer.take(following)]

    def _draft(self) -> list[int]:
        if not self.drafts or (self.judge is not None and not self.judge.wants_draft):
            return []
        n_max = n_drafted_max(self.context, self.speculative, len(self.cached), self.writer)
        if n_max < 1:
            return []
        wanted = Wanted(self.seq, self.cached, self.token, n_max)
        with self.context._speculated.drafting():
            self.drafting.draft([wanted])
        return wanted.drafted

    def _verify(self, drafted: list[int]) -> list[Piece]:
        context, cached = self.context, self.cached
        native = context._open()
        before = context._written.counted(native)
        try:
            drafted = self._compute(native, drafted)
            pieces, self.error = choose_drafted(native, self.choose, self.writer, drafted, 0)
        except BaseException:
            # Nothing of a draft may stay that nobody has looked at.
            self.drafting.forget(self.seq)
            if not cut_back(context, native, self.seq, len(cached)):
                context._history.pop(self.seq, None)
            raise
        right = len(pieces) - (self.error is None)
        cached += [self.token, *drafted[:right]]
        self.token = pieces[-1].token
        if not drafted:
            return pieces
        context._written.add(native, before, 1 + len(drafted), len(pieces))
        if right < len(drafted) and not cut_back(context, native, self.seq, len(cached)):
            self._compute_again(native)
        context._speculated.add(len(drafted), right)
        with context._speculated.drafting():
            self.drafting.accept(self.seq, right, len(cached))
        return pieces

    def _compute(self, native: CData, drafted: list[int]) -> list[int]:
        """Compute the last token and what was drafted after it, if there is room; returns what there was room for."""
        batch = Batch(1 + len(drafted))
        batch.extend(np.array([self.token, *drafted], np.int32), len(self.cached), self.seq, True)
        try:
            self.context._compute(native, batch._struct(), batch.n_tokens)
        except NoKvSlotError:
            if not drafted:
                raise
            return self._compute(native, [])
        self.context._flags = batch.logits.copy()
        if self.drafts and self.drafting.follows:
            with self.context._speculated.drafting():
                self.drafting.computed(batch)
        return drafted

    def _compute_again(self, native: CData) -> None:
        """Bring the text into an empty cache, and draft no more: this memory cannot be cut."""
        logger.info("drafting is switched off for the rest of this text: its memory cannot take back tokens")
        self.drafts = False
        self.drafting.forget(self.seq)
        tokens = np.array(self.cached, np.int32)
        n_batch = self.context._n_batch
        for start in range(0, tokens.size, n_batch):
            part = tokens[start : start + n_batch]
            batch = Batch(part.size)
            batch.extend(part, start, self.seq, False)
            batch.logits[-1] = True
            self.context._compute(native, batch._struct(), 1)


def speculate(
    context: Media,
    request: Request,
    sampler: Sampler | None,
    seq_id: int,
    reuse_prefix: bool,
    record: Record,
    speculative: Speculative,
) -> Iterator[Piece]:
    """Generate as ``generate`` does, with drafts. ``sampler`` is None for the likeliest."""
    lib.moebind_hooks_forget(context._hooks.pointer)
    if request.limit == 0:
        return
    text = _Text(context, speculative, request, seq_id, sampler, request.writer(context), speculative._judge)
    piece = text.begin(reuse_prefix, record)
    yield piece
    while piece.stop_reason is None:
        with context._held():
            context._must_own(seq_id, text.generation)
            pieces = text.go_on()
        for piece in pieces:
            yield piece
        if text.error is not None:
            raise text.error
