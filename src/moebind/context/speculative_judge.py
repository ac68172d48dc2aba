"""Whether drafting pays: for ``auto``, which measures as it goes, and bounds what drafting can lose.

Steps with drafts and without take turns at first. What drafts lose is summed up: what a step takes more than its tokens
would have taken without a draft. When that is as long as ``LOSS_MAX`` plain tokens, and not by a single step, which
somebody else's work may have slowed down, drafting is switched off. Gains make up for losses, but are kept only as far
as ``LOSS_MAX``, so that it is noticed soon when drafts no longer help. Then drafting waits: for ``WAIT`` tokens, and
each time that it loses again for twice as many.

So it loses at most the time of ``LOSS_MAX`` plain tokens and of ``STEPS_MAX`` drafted steps before it is switched off:
before the last step, it has either lost less than the former, or with one step alone.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from moebind._core.native import lib

if TYPE_CHECKING:
    from moebind.backend.timings import SpeculativeCounts
    from moebind.context.drafting import Drafting

__all__ = ["Judge", "Step", "logger"]

logger = logging.getLogger("moebind.speculative")

#: What is lost before drafting is switched off, in plain tokens' time.
LOSS_MAX = 4.0
#: The drafted steps of which the time may be lost besides: the very first, which makes a graph and is not judged, one
#: that loses much by itself, and the last.
STEPS_MAX = 3
#: So many plain tokens take turns with the first drafts; later, one step in so many is plain.
PLAIN, AGAIN = 5, 32
#: Tokens without drafts before they are tried again; after so many drafted steps it is as if they had never lost.
WAIT, WAIT_MAX = 64, 4096


class Judge:
    """Compares the speed with drafts to that without, over all texts of one target and what drafts for it.

    Parameters
    ----------
    clock
        Tells microseconds.

    Attributes
    ----------
    reason : str or None
        Why drafting is switched off; None while it is not.
    """

    def __init__(self, clock: Callable[[], int] = lib.llama_time_us) -> None:
        self.clock = clock
        self.reason: str | None = None
        self._plain: deque[float] = deque(maxlen=4 * PLAIN)
        self._n_plain = 0
        self._first_of_text = True
        self._first_draft = True
        #: Tokens to wait for, and how many the next time.
        self._left, self._wait = 0, WAIT
        self._begin()

    def _begin(self) -> None:
        """Try drafts, from the beginning."""
        self._loss, self._n_lost = 0.0, 0
        self._steps = self._tokens = 0
        self._time = 0.0
        self._since_plain = 0

    def text_begins(self) -> None:
        """Another text begins: its first step makes a graph, and is not compared."""
        self._first_of_text = True

    @property
    def drafts(self) -> bool:
        """Whether drafting goes on, or is to be tried again."""
        return self.reason is None

    @property
    def wants_draft(self) -> bool:
        """Whether the next step is to be drafted."""
        if self.reason is not None or not self._plain:
            return False
        return self._since_plain < (AGAIN if self._n_plain >= PLAIN else 1)

    def saw(self, n_tokens: int, microseconds: float, *, drafted: bool, searched: float = 0.0) -> None:
        """A step was computed.

        Parameters
        ----------
        n_tokens
            Tokens that came of it.
        microseconds
            What it took.
        drafted
            Whether it had a draft.
        searched
            Without one, what looking for a draft took, which is not in ``microseconds``.
        """
        if self.reason is not None:
            self._left -= n_tokens
            if self._left <= 0:
                logger.info("drafting is tried again")
                self.reason = None
                self._begin()
            return
        if not drafted:
            self._saw_plain(microseconds / max(n_tokens, 1))
            self._add(searched)
        elif self._first_draft:
            self._first_draft, self._since_plain = False, self._since_plain + 1
        else:
            self._since_plain += 1
            self._steps, self._tokens, self._time = self._steps + 1, self._tokens + n_tokens, self._time + microseconds
            self._add(microseconds - n_tokens * statistics.median(self._plain))
            if self._steps == AGAIN:
                self._wait = WAIT

    def _saw_plain(self, a_token: float) -> None:
        self._since_plain = 0
        if self._first_of_text:
            self._first_of_text = False
        else:
            self._n_plain += 1
            self._plain.append(a_token)

    def _add(self, lost: float) -> None:
        if not self._plain or not lost:
            return
        plain = max(statistics.median(self._plain), 1.0)
        self._loss = max(self._loss + lost / plain, -LOSS_MAX)
        self._n_lost = 0 if self._loss <= 0 else self._n_lost + (lost > 0)
        if self._loss < LOSS_MAX or self._n_lost < 2:
            return
        speed = 1e6 * self._tokens / max(self._time, 1.0)
        self.reason = (
            f"{speed:.1f} tokens/s with drafts, {1e6 / plain:.1f} without"
            if self._steps
            else f"looking for drafts in vain took as long as {LOSS_MAX:.0f} tokens"
        )
        logger.info("drafting is switched off for %d tokens: %s", self._wait, self.reason)
        self._left, self._wait = self._wait, min(2 * self._wait, WAIT_MAX)


class Step:
    """A step that begins now, to be judged when it has ended.

    Parameters
    ----------
    judge
        Who judges.
    counts
        Has the time that drafting took.
    drafting
        Has the time that it computed prompts, which is no part of any step: the first draft of a text would always
        lose.
    """

    def __init__(self, judge: Judge, counts: SpeculativeCounts, drafting: Drafting) -> None:
        self._judge, self._counts, self._drafting = judge, counts, drafting
        self._began, self._t_draft_us, self._t_prompt_us = judge.clock(), counts.t_draft_us, drafting.t_prompt_us

    def ended(self, n_tokens: int, *, drafted: bool) -> bool:
        """It gave so many tokens, with a draft or without; returns whether drafting goes on."""
        judge, counts = self._judge, self._counts
        prompt = self._drafting.t_prompt_us - self._t_prompt_us
        # Without drafts, nobody would follow either, or look for some.
        searched = 0 if drafted else counts.t_draft_us - self._t_draft_us - prompt
        judge.saw(n_tokens, judge.clock() - self._began - prompt - searched, drafted=drafted, searched=searched)
        if judge.reason is not None:
            counts.stopped = judge.reason
        return judge.drafts
