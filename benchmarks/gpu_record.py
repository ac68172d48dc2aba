"""The record of benchmarks/gpu.py: that of moebind.bench, which also becomes one JSON file, and begins with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_clock import Clock

from moebind.bench.record import FailedError, Record

FORM = 1


class GpuRecord(Record):
    """Measurements by name, and the machine of this command.

    The key has commit, size, device and driver: what was measured with others is not used.
    """

    environment: dict[str, Any]

    def __init__(self, folder: Path, key: dict[str, str]) -> None:
        super().__init__(folder, key)
        self.environment = {}

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        fields = ("date", "seconds", "result", "failure", "key")
        units = {each.name: {field: getattr(each, field) for field in fields} for each in self}
        return {"form": FORM, "key": self.key, "environment": self.environment, "units": units}

    def add_from(self, path: Path) -> int:
        """Add measurements of a report that have the same key and are not here yet; how many they are."""
        try:
            other = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            other = None
        if not isinstance(other, dict) or other.get("form") != FORM or not isinstance(other.get("units"), dict):
            raise ValueError(f"{path} is no record of benchmarks/gpu.py, or one of another form")
        added = 0
        for name, unit in other["units"].items():
            if unit["key"] == self.key and self.find(name) is None:
                self.put(name, unit["result"], failure=unit["failure"], seconds=unit["seconds"], date=unit["date"])
                added += 1
        return added


def measured(
    record: GpuRecord,
    clock: Clock,
    name: str,
    seconds: float,
    measure: Callable[[], object],
    *,
    retry: bool = False,
    again: bool = False,
) -> Any:
    """The result of a measurement: the one in the record, or what ``measure`` finds now, in about ``seconds``.

    Whatever it raises is kept as a failure, so that others are still measured, and is tried again only with ``retry``.
    With ``again`` it is measured in any case.
    """
    known = record.find(name)
    if known is not None and not again and not (retry and known.failure is not None):
        print(f"{name}: {'done' if known.failure is None else 'failed before'}", flush=True)
        return known.result
    # What it took before is a better guess.
    clock.need(seconds if known is None else max(known.seconds, 1.0), name)
    print(f"{name} ...", flush=True)
    made = record.measure(name, lambda: _or_failed(measure))
    failed = "" if made.failure is None else "FAILED after "
    print(f"{name}: {failed}{made.seconds:.1f} s{failed and f': {made.failure}'}", flush=True)
    return made.result


def _or_failed(measure: Callable[[], object]) -> object:
    try:
        return measure()
    except FailedError:
        raise
    except Exception as error:
        raise FailedError(f"{type(error).__name__}: {error}") from error
