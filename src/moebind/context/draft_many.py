"""Drafts for ``generate_many``: for all texts that go on, in one call, and computed with the prompts of others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.native import CData
from moebind.context.drafting import Wanted
from moebind.context.speculate import cut_back, n_drafted_max
from moebind.context.speculative_judge import Step, logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moebind.context.batch import Batch
    from moebind.context.decode import Decoding
    from moebind.context.drafting import Drafting
    from moebind.context.schedule import Run
    from moebind.context.speculative import Speculative

__all__ = ["ManyDrafts"]


class ManyDrafts:
    """What is drafted for the texts of one ``generate_many``; nothing, without a ``Speculative``.

    The caller holds the context in everything here.
    """

    def __init__(self, context: Decoding, speculative: Speculative | None) -> None:
        self._context, self._speculative = context, speculative
        self._judge = None if speculative is None else speculative._judge
        #: Whether each token has to be computed here, since its hidden states are needed.
        self.follows = speculative is not None and speculative._drafting.follows
        if self._judge is not None:
            self._judge.text_begins()
            # Nobody follows what has lost: then texts can have prefixes of others.
            self.follows = self.follows and self._judge.drafts

    def settle(self, running: Sequence[Run]) -> None:
        """Note which texts are new."""
        if self._speculative is None:
            return
        drafting = self._speculative._drafting
        for run in running:
            if not run.fresh:
                continue
            run.fresh = False
            run.may_draft = run.may_draft and self._may_begin(drafting)
            if run.may_draft or self.follows:
                drafting.keep(run.seq, np.array(run.tokens[: run.n_past], np.int32), run.n_past)

    def _may_begin(self, drafting: Drafting) -> bool:
        """Whether a text that begins now is drafted for; one that follows would know nothing of it later."""
        if drafting.follows:
            return self.follows
        return self._judge is None or self._judge.drafts or drafting.anytime

    def draft(self, running: Sequence[Run], capacity: int) -> bool:
        """Draft for the texts that go on; returns whether there is something."""
        for run in running:
            run.drafted = []
        speculative, context = self._speculative, self._context
        if speculative is None or (self._judge is not None and not self._judge.wants_draft):
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
            if n_max > 0 and run.may_draft:
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
        if self._speculative is not None and self.follows:
            with self._context._speculated.drafting():
                self._speculative._drafting.computed(batch)

    def chosen(self, native: CData, run: Run, n_right: int) -> None:
        """A token was chosen after so many that were drafted; the cache still holds the whole draft."""
        context, speculative = self._context, self._speculative
        if speculative is None:
            return
        if not run.begun:
            run.begun = True
            if run.may_draft:
                speculative._drafting.begin(run.seq, run.tokens)
            return
        if not run.drafted:
            return
        run.n_past += n_right
        if n_right < len(run.drafted) and not cut_back(context, native, run.seq, run.n_past):
            run.n_past, run.may_draft = 0, False  # its tokens are computed again, as a prompt
            logger.info("drafting is switched off for the rest of a text: its memory cannot take back tokens")
            speculative._drafting.forget(run.seq)
        context._speculated.add(len(run.drafted), n_right)
        with context._speculated.drafting():
            speculative._drafting.accept(run.seq, n_right, run.n_past)

    @contextmanager
    def measured(self, running: Sequence[Run]) -> Iterator[None]:
        """Stand around a computation, to see whether drafting pays. Those with prompts tell nothing."""
        judge, speculative = self._judge, self._speculative
        if judge is None or speculative is None:
            yield
            return
        only_texts = all(run.begun and len(run.tokens) - run.n_past == 1 for run in running)
        before = sum(len(run.tokens) for run in running)
        step = Step(judge, self._context._speculated, speculative._drafting)
        yield
        if not only_texts:
            return
        n_tokens = sum(len(run.tokens) for run in running) - before
        goes_on = step.ended(n_tokens, drafted=any(run.drafted for run in running))
        if not goes_on and not speculative._drafting.anytime:
            self.follows = False
            for run in running:
                run.may_draft = False
