"""Drafts for ``generate_many``: for all texts that go on, in one call, and computed with the prompts of others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.native import CData
from moebind.context.drafting import Wanted
from moebind.context.speculate import cut_back, n_drafted_max

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moebind.context.batch import Batch
    from moebind.context.decode import Decoding
    from moebind.context.schedule import Run
    from moebind.context.speculative import Speculative

__all__ = ["ManyDrafts"]


class ManyDrafts:
    """What is drafted for the texts of one ``generate_many``; nothing, without a ``Speculative``.

    The caller holds the context in everything here.
    """

    def __init__(self, context: Decoding, speculative: Speculative | None) -> None:
        self._context = context
        self._judge = None if speculative is None else speculative._judge
        if self._judge is not None:
            self._judge.text_begins()
            if speculative is not None and not self._judge.drafts and not speculative._drafting.anytime:
                speculative = None  # it has lost, and cannot begin in the middle
        self._speculative = speculative
        self._drafts = speculative is not None

    @property
    def follows(self) -> bool:
        """Whether each token has to be computed here, since its hidden states are needed."""
        return self._speculative is not None and self._speculative._drafting.follows

    def settle(self, running: Sequence[Run]) -> None:
        """Note which texts are new."""
        for run in running:
            if self._speculative is not None and run.fresh:
                run.fresh = False
                self._speculative._drafting.keep(run.seq, np.array(run.tokens[: run.n_past], np.int32), run.n_past)

    def draft(self, running: Sequence[Run], capacity: int) -> bool:
        """Draft for the texts that go on; returns whether there is something."""
        for run in running:
            run.drafted = []
        speculative, context = self._speculative, self._context
        if speculative is None or not self._drafts or (self._judge is not None and not self._judge.wants_draft):
            return False
        ready = [run for run in running if run.begun and len(run.tokens) - run.n_past == 1]
        if self._judge is not None and len(ready) < len(running):
            return False  # what drafts cost beside prompts cannot be told, and would have no bound
        # Each of the others has a token at least, and perhaps an output.
        room = min(capacity, context.n_ubatch, context._n_outputs_max) - (len(running) - len(ready))
        wanted = []
        for run in ready:
            share = room // len(ready) - 1
            n_max = min(share, n_drafted_max(context, speculative, run.n_past, run.writer))
            if n_max > 0:
                wanted.append(Wanted(run.seq, run.tokens[:-1], run.tokens[-1], n_max))
        if not wanted:
            return False
        with context._speculated.drafting():
            speculative._drafting.draft(wanted)
        drafted = {each.seq: each.drafted for each in wanted}
        for run in ready:
            run.drafted = drafted.get(run.seq, [])
        return any(run.drafted for run in ready)

    def computed(self, batch: Batch) -> None:
        """The context has computed this batch."""
        if self._speculative is not None and self._drafts and self.follows:
            with self._context._speculated.drafting():
                self._speculative._drafting.computed(batch)

    def chosen(self, native: CData, run: Run, n_right: int) -> None:
        """A token was chosen after so many that were drafted; the cache still holds the whole draft."""
        context, speculative = self._context, self._speculative
        if speculative is None:
            return
        if not run.begun:
            run.begun = True
            speculative._drafting.begin(run.seq, run.tokens)
            return
        if not run.drafted:
            return
        run.n_past += n_right
        if n_right < len(run.drafted) and not cut_back(context, native, run.seq, run.n_past):
            run.n_past = 0  # its tokens are computed again, as a prompt
            speculative._drafting.forget(run.seq)
        context._speculated.add(len(run.drafted), n_right)
        with context._speculated.drafting():
            speculative._drafting.accept(run.seq, n_right, run.n_past)

    @contextmanager
    def measured(self, running: Sequence[Run]) -> Iterator[None]:
        """Stand around a computation, to see whether drafting pays. Those with prompts tell nothing."""
        judge = self._judge
        if judge is None:
            yield
            return
        only_texts = all(run.begun and len(run.tokens) - run.n_past == 1 for run in running)
        before = [len(run.tokens) for run in running]
        counts, began = self._context._speculated, judge.clock()
        drafting_before = counts.t_draft_us
        yield
        if not only_texts:
            return
        drafted = any(run.drafted for run in running)
        searched = 0 if drafted else counts.t_draft_us - drafting_before
        n_tokens = sum(len(run.tokens) for run in running) - sum(before)
        judge.saw(n_tokens, judge.clock() - began - searched, drafted=drafted, searched=searched)
        if judge.reason is not None:
            counts.stopped = judge.reason
            self._drafts = self._speculative is not None and self._speculative._drafting.anytime
