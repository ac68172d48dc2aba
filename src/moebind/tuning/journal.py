"""The journal of a search: every answer that it got, a line each, so that it can go on where it was stopped.

A search asks for choices and measurements, and what it asks next follows from the answers alone. So a search that was
stopped is begun again, and the journal answers what it answered before, in no time; from the first question that is not
the one that was asked then, everything is new. The file is JSON lines: a line for what the search is of, then one for
each answer. What was being written when the process was killed is an incomplete line, and does not count.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from io import BufferedRandom
from typing import Any

from moebind._core.shown import shown
from moebind.errors import MoebindError

__all__ = ["Journal"]

#: The form of the file; it changes when something in it changes its meaning.
FORM = 2


class Journal:
    """Answers that are there already, and a file to which new ones are added.

    Parameters
    ----------
    path
        The file.
    about
        What the search is of, as plain values: model, machine, build, what was asked for.
    resume
        Whether to go on with what is in the file; otherwise it begins anew.

    Raises
    ------
    ValueError
        If the file is of another search; the message says in what it differs.
    MoebindError
        If another process writes it at this moment.
    FileNotFoundError
        If there is nothing to go on with.
    OSError
        If it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, object], *, resume: bool = False) -> None:
        self.path = os.fspath(path)
        self._about = _plain(about)
        self._known: list[dict[str, Any]] = []
        self._at = 0
        #: Bytes of the file that count.
        self._end = 0
        self._file = self._opened(resume)
        try:
            self._lock()
            if resume:
                self._read()
            else:
                self._write({"form": FORM, "about": self._about})
        except BlockingIOError:
            self._file.close()
            raise MoebindError(
                f"journal is {shown(self.path)}, into which another search writes at this moment: wait until that has "
                "ended, or give another file"
            ) from None
        except BaseException:
            self._file.close()
            raise

    @property
    def replays(self) -> bool:
        """Whether the next answer is in the file."""
        return self._at < len(self._known)

    def answers(self, question: Mapping[str, object]) -> bool:
        """Whether the next answer in the file is to this question."""
        return self.replays and self._known[self._at]["question"] == _plain(question)

    def ask(self, question: Mapping[str, object], answer: Callable[[], object]) -> Any:
        """The answer that is in the file, or else a new one, which is written there before it is returned."""
        asked = _plain(question)
        if self.replays:
            line = self._known[self._at]
            if line["question"] == asked:
                self._at += 1
                self._end = line["end"]
                return line["answer"]
            self._known = []  # it goes another way from here
        found = _plain(answer())
        self._write({"question": asked, "answer": found})
        return found

    def close(self) -> None:
        """No more is written."""
        self._file.close()

    def _write(self, line: Mapping[str, object]) -> None:
        self._file.seek(self._end)
        self._file.truncate()
        self._end += self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        """Keep others from the file, where its file system has locks: some of networks have none."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}:
                raise

    def _opened(self, resume: bool) -> BufferedRandom:
        """The file, with what is in it: another process may be writing."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | (0 if resume else os.O_CREAT), 0o666)
        except FileNotFoundError:
            if not resume:
                raise
            raise FileNotFoundError(
                f"there is nothing to resume: {self.path} does not exist; leave resume out to begin"
            ) from None
        return open(descriptor, "r+b")

    def _read(self) -> None:
        lines = self._file.readlines()
        end = 0
        for number, line in enumerate(lines or [b""]):
            found = _parsed(line)
            if number == 0:
                self._check(found)
            elif found is None or not {"question", "answer"} <= found.keys():
                break
            end += len(line)
            if number and found is not None:
                self._known.append({**found, "end": end})
            else:
                self._end = end

    def _check(self, head: dict[str, Any] | None) -> None:
        if head is None or head.get("form") != FORM or not isinstance(head.get("about"), dict):
            raise ValueError(f"{self.path} is no journal of a search, or another version's: leave resume out to begin")
        before = head["about"]
        other = [name for name in sorted({*before, *self._about}) if before.get(name) != self._about.get(name)]
        if other:
            name = other[0]
            raise ValueError(
                f"{self.path} is of another search: {' and '.join(other)} {'differ' if other[1:] else 'differs'} "
                f"({name} was {shown(before.get(name))}, and is {shown(self._about.get(name))}); leave resume out to "
                "begin"
            )


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _plain(value: object) -> Any:
    return json.loads(json.dumps(value))
