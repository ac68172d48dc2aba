"""The other side of :mod:`moebind.bench.child`: starts it, talks with it, and survives its death."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

from moebind.bench.resident_memory import Resident, Seen, resident

__all__ = ["FailedError", "measure"]

#: It finds moebind where this process did, whatever lies in the current folder.
_CHILD = "import sys; sys.path[:] = sys.argv[1:]; from moebind.bench.child import main; main()"

#: Seconds that a child has to close its model when it is done.
LEAVE_TIMEOUT = 60.0


class FailedError(Exception):
    """A placement was not measured; the text says why."""


def measure(asked: Mapping[str, Any], timeout: float | None, step: Callable[[], None]) -> dict[str, Any]:
    """Have one placement measured in a process of its own.

    Parameters
    ----------
    asked
        What :func:`moebind.bench.child.main` reads.
    timeout
        Seconds that it may take; None: as long as it needs.
    step
        Called after each part of the work.

    Returns
    -------
    dict
        The child's last message, with what was seen from outside as ``"before"`` and ``"held"``.

    Raises
    ------
    FailedError
        If the child says so, dies, or takes too long. It is gone then.
    """
    seen: dict[str, Any] = {"before": None, "held": None, "nvml": None}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,  # Ctrl-C is for us, who end it
        )
        assert process.stdin is not None  # noqa: S101  # for mypy: they are pipes
        assert process.stdout is not None  # noqa: S101
        try:
            _send(process.stdin, asked)
            for message in _messages(process.stdout, timeout):
                match message["event"]:
                    case "step":
                        step()
                    case "look":
                        seen[message["moment"]] = _look(process.pid, message)
                        seen["nvml"] = message["reason"]
                        _send(process.stdin, {})
                    case "failed":
                        _leave(process)
                        raise FailedError(message["reason"])
                    case "done":
                        _leave(process)
                        return {**message, **seen}
            raise FailedError(_death(process, said))
        finally:
            _end(process)


def _look(pid: int, message: Mapping[str, Any]) -> Seen:
    workers: dict[str, Resident] = {}
    for name, worker in message["workers"].items():
        found = resident(worker)
        if found is not None:
            workers[name] = found
    return Seen(resident(pid), workers, message["gpu"], message["cards"])


def _send(pipe: IO[bytes], message: Mapping[str, Any]) -> None:
    with suppress(BrokenPipeError):  # it died: the end of its output says so
        pipe.write(json.dumps(message).encode() + b"\n")
        pipe.flush()


def _messages(pipe: IO[bytes], timeout: float | None) -> Iterator[dict[str, Any]]:
    """Lines as they come, until the output ends."""
    give_up = None if timeout is None else time.monotonic() + timeout
    waiting = b""
    while True:
        left = None if give_up is None else max(0.0, give_up - time.monotonic())
        if not select.select([pipe], [], [], left)[0]:
            raise FailedError(f"it took longer than the {timeout:g} seconds that were allowed, and was ended")
        read = os.read(pipe.fileno(), 2**16)
        if not read:
            return
        *lines, waiting = (waiting + read).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _death(process: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    code = process.wait()
    said.seek(0)
    lines = [line for line in said.read().decode("utf-8", "replace").splitlines() if line.strip()]
    last = f": {lines[-1].strip()}" if lines else ""
    if code >= 0:
        return f"the process ended with status {code}{last}"
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return "the process was ended by SIGKILL: by somebody, or by the system, because memory ran out"
    return f"the process was ended by {name}{last}"


def _leave(process: subprocess.Popen[bytes]) -> None:
    """Let it free what it holds, and end its workers, before the next one needs the memory."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(LEAVE_TIMEOUT)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The worker of a loopback device ends with it."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what it was not there to read any more
                pipe.close()
