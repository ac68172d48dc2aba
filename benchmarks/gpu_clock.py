"""The time that a command of benchmarks/gpu.py may take."""

from __future__ import annotations

import time
from collections.abc import Callable


class OutOfTimeError(Exception):
    """The next measurement would take longer than is left; the command goes on there when it is given again."""


class Clock:
    """How much of the time that a command may take is left."""

    def __init__(self, minutes: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = None if minutes is None else now() + 60 * minutes

    def left(self) -> float | None:
        """Seconds; None: as many as it takes."""
        return None if self._end is None else self._end - self._now()

    def need(self, seconds: float, what: str) -> None:
        """Stop here if there is less left."""
        left = self.left()
        if left is not None and left < seconds:
            raise OutOfTimeError(f"{what} takes about {seconds:.0f} s, and {max(left, 0):.0f} are left")
