"""Records of measurements: each is kept as soon as it is there, and is not made again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from moebind._core.atomic_files import write_whole
from moebind.bench import environment

__all__ = ["FailedError", "Measurement", "Record"]

#: The form of the files; it changes when something in them changes its meaning.
FORM = 1
#: Types of a file's fields.
_KINDS: dict[str, Any] = {
    "name": str,
    "key": dict,
    "request": dict,
    "date": str,
    "seconds": (int, float),
    "failure": (str, type(None)),
}


class FailedError(Exception):
    """A measurement failed; the text says why, and is what a record keeps of it."""


@dataclass(frozen=True)
class Measurement:
    """A result, or why there is none.

    Attributes
    ----------
    name : str
        Of whoever made it; unique among those with the same key and request.
    key : Mapping[str, object]
        Conditions of the whole record: commit or build, machine, files.
    request : Mapping[str, object]
        Conditions of this measurement, if the name does not tell them.
    date : str
        When it began, UTC.
    seconds : float
        How long it took.
    failure : str or None
        Why there is no result.
    result : Any
        Plain values; None if it failed.
    """

    name: str
    key: Mapping[str, object]
    request: Mapping[str, object]
    date: str
    seconds: float
    failure: str | None
    result: Any


class Record:
    """A folder of measurements, each in a file that is written whole or not at all.

    A file says under which conditions its measurement was made. One of other conditions, such as another build, and
    one that is damaged, are taken for absent: the measurement is made again. Those of other conditions stay in the
    folder.

    Parameters
    ----------
    folder
        Where the files are; it is made with the first of them.
    key
        Conditions of all measurements, as plain values.
    """

    def __init__(self, folder: str | os.PathLike[str], key: Mapping[str, object]) -> None:
        self.folder = os.fspath(folder)
        self.key: dict[str, Any] = _plain(key)

    def identity(self, name: str, request: Mapping[str, object] | None = None) -> str:
        """A hash of a measurement's name and conditions."""
        conditions = json.dumps([name, self.key, request or {}], sort_keys=True)
        return hashlib.sha256(conditions.encode()).hexdigest()

    def path(self, name: str, request: Mapping[str, object] | None = None) -> str:
        """The file of a measurement."""
        readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:80]
        return os.path.join(self.folder, f"{readable}-{self.identity(name, request)[:16]}.json")

    def find(self, name: str, request: Mapping[str, object] | None = None) -> Measurement | None:
        """The measurement of that name and under these conditions; None if there is none, or a damaged one."""
        found = _read(self.path(name, request))
        same = found is not None and (found.name, found.key, found.request) == (name, self.key, _plain(request or {}))
        return found if same else None

    def result(self, name: str, request: Mapping[str, object] | None = None) -> Any:
        """The result of a measurement; None if there is none, or if it failed."""
        found = self.find(name, request)
        return None if found is None else found.result

    def __iter__(self) -> Iterator[Measurement]:
        """All measurements under the conditions of this record, in the order in which they began."""
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        paths = [os.path.join(self.folder, name) for name in names if name.endswith(".json")]
        found = [each for path in paths if (each := _read(path)) is not None and path == self._path_of(each)]
        return iter(sorted(found, key=lambda each: (each.date, each.name)))

    def _path_of(self, measurement: Measurement) -> str | None:
        return self.path(measurement.name, measurement.request) if measurement.key == self.key else None

    def measure(
        self, name: str, measure: Callable[[], object], request: Mapping[str, object] | None = None
    ) -> Measurement:
        """Measure now, and keep what comes of it, also the failure if ``measure`` raises ``FailedError``.

        Other exceptions go on, and nothing is kept.
        """
        date, start = environment.now(), time.monotonic()
        result, failure = None, None
        try:
            result = measure()
        except FailedError as error:
            failure = str(error)
        return self.put(name, result, request, failure=failure, seconds=time.monotonic() - start, date=date)

    def put(
        self,
        name: str,
        result: object,
        request: Mapping[str, object] | None = None,
        *,
        failure: str | None = None,
        seconds: float = 0.0,
        date: str | None = None,
    ) -> Measurement:
        """Keep a measurement, in place of the one of the same name and conditions; without a date, of now.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        date = environment.now() if date is None else date
        made = Measurement(name, self.key, _plain(request or {}), date, round(seconds, 2), failure, _plain(result))
        os.makedirs(self.folder, exist_ok=True)
        text = json.dumps({"form": FORM, **asdict(made)}, indent=1, allow_nan=False)
        write_whole(self.path(name, request), [text.encode()])
        return made


def _plain(value: object) -> Any:
    """Values as they are when they are read again: tuples as lists, all keys as texts."""
    return json.loads(json.dumps(value))


def _read(path: str) -> Measurement | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        found = Measurement(**{name: fields[name] for name in Measurement.__dataclass_fields__})
        if fields["form"] == FORM and all(isinstance(fields[name], kind) for name, kind in _KINDS.items()):
            return found
    return None
