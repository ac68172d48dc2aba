"""Somebody who types at a terminal, and lines that come on standard input."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

MOEBIND = Path(sys.executable).with_name("moebind")
#: What Ctrl-D sends at the beginning of a line.
CTRL_D = "\x04"
PATIENCE = 120


def type_lines(patch: pytest.MonkeyPatch, *lines: str) -> None:
    """Have these lines come on standard input."""
    data = "".join(f"{line}\n" for line in lines).encode()
    patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


class Typist:
    """Somebody at a terminal."""

    def __init__(self, terminal: int, process: subprocess.Popen[bytes]) -> None:
        self.terminal, self.process, self.seen = terminal, process, ""

    def wait_for(self, text: str) -> str:
        """What came, up to and with this text."""
        give_up = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < give_up, self.seen
            if select.select([self.terminal], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.terminal, 2**16).decode(errors="replace")
                except OSError:  # nobody holds the other end any more
                    raise AssertionError(f"it ended: {self.seen!r}") from None
        before, found, self.seen = self.seen.partition(text)
        return before + found

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def interrupt(self, *, waiting: bool = False) -> None:
        """What Ctrl-C does; with ``waiting``, as soon as the process waits for what is typed.

        Python looks at a signal between the prompt and that only when something is typed.
        """
        rested = 0
        while waiting and rested < 3:
            rested = rested + 1 if psutil.Process(self.process.pid).status() == psutil.STATUS_SLEEPING else 0
            time.sleep(0.05)
        self.process.send_signal(signal.SIGINT)

    def ends_with(self, status: int) -> None:
        assert self.process.wait(PATIENCE) == status


@contextmanager
def typing(*command: object) -> Iterator[Typist]:
    """A command at a terminal of its own."""
    ours, theirs = pty.openpty()
    arguments, variables = [str(each) for each in command], {**os.environ, "TERM": "dumb"}
    process = subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    os.close(theirs)
    try:
        yield Typist(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
