"""How far a benchmark is: a bar, lines, or what the caller gave."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

from moebind._core import checks
from moebind._core.progress import progress_bar
from moebind.bench.rows import OffloadRow
from moebind.errors import MoebindError

__all__ = ["Progress"]


class Progress:
    """Over all parts of the work: a bar on a terminal, elsewhere lines for each placement, or the caller's function.

    Parameters
    ----------
    given
        Whether to show it, or what is called instead.
    total
        How many parts there are.
    part
        What part of a placement comes after so many of its own, in words. Where there is no bar, each that begins with
        another word is a line.
    """

    def __init__(
        self, given: Callable[[float], bool | None] | bool, total: int, part: Callable[[int], str] = lambda at: ""
    ) -> None:
        self._total = total
        self._done = 0
        self._part = part
        self._placement = ""
        self._begun = 0
        self._name = "offload"
        self._word = ""
        self._lines = False
        self._callback: Callable[[float], bool | None] | None = None
        self._close: Callable[[], None] = lambda: None
        if callable(given):
            self._callback = given
        elif checks.boolean("progress", given):
            self._lines = True
            if sys.stderr.isatty():
                with suppress(ImportError):  # tqdm was not asked for by name; lines will do
                    self._callback, self._close = progress_bar(lambda: self._name)
                    self._lines = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def begin(self, name: str, at: int, of: int, done: int) -> None:
        """A placement is next, and so many parts are done."""
        self._name = name
        self._placement = f"{at} of {of}, {name}"
        self._begun = done
        self._word = ""
        self.at(done)

    def measures(self) -> None:
        """Say which part of the placement comes next."""
        if part := self._part(self._done - self._begun):
            self._name = f"{self._placement}: {part}"
            word = part.split()[0]
            if self._lines and word != self._word:
                self._say(self._name)
            self._word = word
        self._tell(self._done / self._total)

    def finished(self, row: OffloadRow, *, known: bool) -> None:
        """Say so in a line, where there is no bar."""
        if not self._lines:
            return
        if row.prompt is None or row.decode is None:
            found = f"failed: {' '.join(str(row.failure).split())}"
        else:
            found = f"prompt {row.prompt.mean:.1f}, decode {row.decode.mean:.1f} tokens/s"
        self._say(f"{self._placement}: {found}{', measured before' * known}")

    def step(self) -> None:
        """One more part is done."""
        self._done = min(self._done + 1, self._total)
        self.measures()

    def at(self, done: int) -> None:
        """So many parts are done."""
        self._done = min(done, self._total)
        self._tell(self._done / self._total)

    def aside(self, fraction: float) -> None:
        """Work that is not counted, but may be stopped."""
        self._tell(self._done / self._total)

    def _say(self, line: str) -> None:
        encoding = sys.stderr.encoding or "utf-8"
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)

    def _tell(self, fraction: float) -> None:
        if self._callback is not None and self._callback(fraction) is False:
            raise MoebindError("the progress callback stopped the benchmark")
