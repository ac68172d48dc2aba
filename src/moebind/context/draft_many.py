"""Drafts for texts that are computed together: for all that go on, and computed with the prompts of others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.native import CData
from moebind.context.drafting import Wanted
from moebind.context.speculate import cut_back, n_drafted_max
from moebind.context.speculative_judge import Step, logger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from moebind.context.batch import Batch
    from moebind.context.decode import Decoding
    from moebind.context.schedule import Run
    from moebind.context.speculative import Speculative
    from moebind.context.speculative_judge import Judge

__all__ = ["ManyDrafts"]

_NOTHING = nullcontext()


class ManyDrafts:
    """What is drafted for texts that are computed together, for each by its own ``Speculative``, or by none.

    The caller holds the context in everything here.

    Parameters
    ----------
    context
        Computes the texts.
    follower
        The one that may follow what is computed, as a draft model does that reads hidden states. It looks at all texts;
        those for which another one drafts would leave it behind.
    """

    def __init__(self, context: Decoding, follower: Speculative | None) -> None:
        self._context = context
        self._follower = follower if follower is not None and follower._drafting.follows else None
        #: Whether each token has to be computed here, since its hidden states are needed. Nobody follows what has lost:
        #: then texts can have prefixes of others.
        self.follows = self._follower is not None and _goes_on(self._follower)
        self._may_follow = self.follows

    def settle(self, running: Sequence[Run]) -> None:
        """Note which texts are new."""
        fresh = [run for run in running if run.fresh]
        if not fresh:
            return
        follower = self._follower
        if self._may_follow and len(fresh) == len(running) and follower is not None and _goes_on(follower):
            self.follows = True  # it may have lost, and is tried again: no text goes on that it knows nothing of
        begun = {id(run.speculative) for run in running if not run.fresh}
        for run in fresh:
            run.fresh = False
            drafts = run.speculative
            if drafts is not None:
                if drafts._judge is not None and id(drafts) not in begun:
                    drafts._judge.text_begins()
                run.may_draft = run.may_draft and self._may_begin(drafts)
            if self.follows and follower is not None:
                follower._drafting.keep(run.seq, np.array(run.tokens[: run.n_past], np.int32), run.n_past)
            elif drafts is not None and run.may_draft:
                drafts._drafting.keep(run.seq, np.array(run.tokens[: run.n_past], np.int32), run.n_past)

    def _may_begin(self, drafts: Speculative) -> bool:
        """Whether a text that begins now is drafted for; one that follows would know nothing of it later."""
        return self.follows if drafts is self._follower else drafts._drafting.anytime or _goes_on(drafts)

    def draft(self, running: Sequence[Run], capacity: int) -> bool:
        """Draft for the texts that go on; returns whether there is something."""
        groups: dict[Speculative, list[Run]] = {}
        n_drafting = 0
        alone = _drafts_alone(running)
        for run in running:
            run.drafted = []
            drafts = run.speculative
            if drafts is None or not run.may_draft or not run.begun or len(run.tokens) - run.n_past != 1:
                continue
            if drafts._judge is None or (drafts is alone and drafts._judge.wants_draft and _go_on(running)):
                groups.setdefault(drafts, []).append(run)
                n_drafting += 1
        context = self._context
        for drafts, runs in groups.items():
            # Each of the others has a token at least, and perhaps an output.
            room = min(capacity, context.n_ubatch, context._n_outputs_max) - len(running)
            wanted = []
            for run in runs:
                n_max = min(room // n_drafting, n_drafted_max(context, drafts, run.n_past, run.writer))
                if n_max > 0:
                    wanted.append(Wanted(run.seq, run.tokens[:-1], run.tokens[-1], n_max))
            if wanted:
                with context._speculated.drafting():
                    drafts._drafting.draft(wanted)
                drafted = {each.seq: each.drafted for each in wanted}
                for run in runs:
                    run.drafted = drafted.get(run.seq, [])
        return any(run.drafted for run in running)

    def computed(self, batch: Batch) -> None:
        """The context has computed this batch."""
        if self.follows and self._follower is not None:
            with self._context._speculated.drafting():
                self._follower._drafting.computed(batch)

    def chosen(self, native: CData, run: Run, n_right: int) -> None:
        """A token was chosen after so many that were drafted; the cache still holds the whole draft."""
        context, drafts = self._context, run.speculative
        if not run.begun:
            run.begun = True
            if drafts is not None and run.may_draft:
                drafts._drafting.begin(run.seq, run.tokens)
            return
        if drafts is None or not run.drafted:
            return
        run.n_past += n_right
        if n_right < len(run.drafted) and not cut_back(context, native, run.seq, run.n_past):
            run.n_past, run.may_draft = 0, False  # its tokens are computed again, as a prompt
            logger.info("drafting is switched off for the rest of a text: its memory cannot take back tokens")
            drafts._drafting.forget(run.seq)
        context._speculated.add(len(run.drafted), n_right)
        with context._speculated.drafting():
            drafts._drafting.accept(run.seq, n_right, run.n_past)

    def measured(self, running: Sequence[Run]) -> AbstractContextManager[None]:
        """What stands around a computation, to see whether drafting pays. Those with prompts tell nothing."""
        drafts = _drafts_alone(running)
        if drafts is None or drafts._judge is None:
            return _NOTHING
        return self._measured(running, drafts, drafts._judge)

    @contextmanager
    def _measured(self, running: Sequence[Run], drafts: Speculative, judge: Judge) -> Iterator[None]:
        only_texts = _go_on(running)
        before = sum(len(run.tokens) for run in running)
        step = Step(judge, self._context._speculated, drafts._drafting)
        yield
        if not only_texts:
            return
        n_tokens = sum(len(run.tokens) for run in running) - before
        goes_on = step.ended(n_tokens, drafted=any(run.drafted for run in running))
        if not goes_on and not drafts._drafting.anytime:
            self.follows = self.follows and drafts is not self._follower
            for run in running:
                run.may_draft = run.may_draft and run.speculative is not drafts


def _drafts_alone(running: Sequence[Run]) -> Speculative | None:
    """What drafts for these, if it is one: of what several cost, nobody can tell which of them pays."""
    all_that_draft = {run.speculative for run in running if run.speculative is not None}
    return all_that_draft.pop() if len(all_that_draft) == 1 else None


def _go_on(running: Sequence[Run]) -> bool:
    """Whether all are texts that go on: what drafts cost beside prompts cannot be told, and would have no bound."""
    return all(run.begun and len(run.tokens) - run.n_past == 1 for run in running)


def _goes_on(drafts: Speculative) -> bool:
    return drafts._judge is None or drafts._judge.drafts
