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
    """Over all parts of the work: a bar on a terminal, elsewhere a line per placement, or the caller's function."""

    def __init__(self, given: Callable[[float], bool | None] | bool, total: int) -> None:
        self._total = total
        self._done = 0
        self._name = "offload"
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

    def begin(self, name: str, done: int) -> None:
        """A placement is next, and so many parts are done."""
        self._name = name
        self.at(done)

    def finished(self, row: OffloadRow, at: int, of: int, *, known: bool) -> None:
        """Say so in a line, where there is no bar."""
        if not self._lines:
            return
        if row.prompt is None or row.decode is None:
            found = f"failed: {' '.join(str(row.failure).split())}"
        else:
            found = f"prompt {row.prompt.mean:.1f}, decode {row.decode.mean:.1f} tokens/s"
        line = f"{at} of {of}, {row.name}: {found}{', measured before' * known}"
        encoding = sys.stderr.encoding or "utf-8"
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)

    def step(self) -> None:
        """One more part is done."""
        self.at(self._done + 1)

    def at(self, done: int) -> None:
        """So many parts are done."""
        self._done = min(done, self._total)
        self._tell(self._done / self._total)

    def aside(self, fraction: float) -> None:
        """Work that is not counted, but may be stopped."""
        self._tell(self._done / self._total)

    def _tell(self, fraction: float) -> None:
        if self._callback is not None and self._callback(fraction) is False:
            raise MoebindError("the progress callback stopped the benchmark")
