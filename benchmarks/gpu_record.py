"""What benchmarks/gpu.py has measured so far, and how long it may still measure."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FORM = 1


class OutOfTimeError(Exception):
    """What comes next would take longer than is left; the command goes on there when it is given again."""


class Record:
    """Measurements by name, in a file that is whole after each of them.

    Each knows what it was made with: those of another commit, device, driver or size are made again.
    """

    def __init__(self, path: Path, key: dict[str, str]) -> None:
        self.path, self.key = path, key
        self.environment: dict[str, Any] = {}
        self.units: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.take(path)

    def take(self, path: Path) -> int:
        """Take over from another record what was made with the same, and is not here yet; how many that were."""
        other = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(other, dict) or other.get("form") != FORM:
            raise ValueError(f"{path} is no record of benchmarks/gpu.py, or one of another form")
        taken = 0
        for name, unit in other["units"].items():
            if unit["key"] == self.key and name not in self.units:
                self.units[name] = unit
                taken += 1
        return taken

    def result(self, name: str) -> Any:
        """What was measured; None if nothing was, or if it failed."""
        unit = self.units.get(name)
        return None if unit is None else unit["result"]

    def put(self, name: str, result: object, seconds: float, failure: str | None = None) -> None:
        """Keep a measurement."""
        self.units[name] = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            "result": result,
            "failure": failure,
            "key": self.key,
        }
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")
        os.replace(unfinished, self.path)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"form": FORM, "key": self.key, "environment": self.environment, "units": self.units}


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


def measured(
    record: Record, clock: Clock, name: str, seconds: float, measure: Callable[[], object], retry: bool = False
) -> Any:
    """What was measured under this name, or what ``measure`` finds now, which takes about ``seconds``.

    What it raises is kept as a failure, so that others are still measured. It is tried again only with ``retry``.
    """
    known = record.units.get(name)
    if known is not None and not (retry and known["failure"] is not None):
        print(f"{name}: {'done' if known['failure'] is None else 'failed before'}", flush=True)
        return known["result"]
    # What it took before is a better guess.
    clock.need(seconds if known is None else max(known["seconds"], 1.0), name)
    print(f"{name} ...", flush=True)
    start = time.monotonic()
    try:
        result = measure()
    except Exception as error:
        record.put(name, None, time.monotonic() - start, f"{type(error).__name__}: {error}")
        print(f"{name}: FAILED after {time.monotonic() - start:.1f} s: {error}", flush=True)
        return None
    record.put(name, result, time.monotonic() - start)
    print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)
    return result
