"""How far a search is: lines, or what the caller gave."""

from __future__ import annotations

import sys
from collections.abc import Callable

from moebind._core import checks
from moebind.errors import MoebindError
from moebind.tuning.report import line
from moebind.tuning.search import Step
from moebind.tuning.trials import Trial

__all__ = ["Progress"]


class Progress:
    """Says what each dimension gave; and the share of the dimensions that are decided, or of the time that is over.

    Parameters
    ----------
    given
        Whether to write lines, or what is called instead with a fraction.
    total
        How many dimensions there are.
    elapsed
        The share of the time that is over; 0 without a limit.
    """

    def __init__(
        self, given: Callable[[float], bool | None] | bool, total: int, elapsed: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._callback = given if callable(given) else None
        self._lines = False if callable(given) else checks.boolean("progress", given)
        self._total = total
        self._elapsed = elapsed
        self._decided: set[str] = set()
        self._purpose = ""

    def told(self, what: Step | Trial) -> None:
        """A dimension was decided, or a measurement made.

        A dimension for which there was no time has no line: the result names all of these.

        Raises
        ------
        MoebindError
            If the caller's function returned False.
        """
        if isinstance(what, Step):
            self._decided.add(what.dimension)
            if not what.out_of_time:
                self._say(line(what))
        elif what.purpose != self._purpose:
            self._purpose = what.purpose
            self._say(f"{what.purpose} ...")
        if self._callback is not None:
            share = max(min(len(self._decided) / max(self._total, 1), 1.0), min(self._elapsed(), 1.0))
            if self._callback(share) is False:
                raise MoebindError("the progress callback stopped the search")

    def _say(self, text: str) -> None:
        if self._lines:
            encoding = sys.stderr.encoding or "utf-8"
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)
