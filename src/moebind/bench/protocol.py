"""The conversation between a program that measures and the processes that it starts for that.

A child is a fresh Python process. It reads lines of JSON from its standard input: one with what to do, and answers to
what it asks. It writes lines of JSON: events, and at the end a result or the reason of a failure. It ends when its
input does, and so never outlives its parent.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any, TextIO

from moebind._core.endings import ended_by
from moebind.bench.record import FailedError
from moebind.errors import MoebindError

__all__ = ["Handler", "Parent", "run_child", "serve"]

#: Gets the child's process id and what an event tells, and returns the answer to an event that waits for one.
Handler = Callable[[int, Mapping[str, Any]], object]

#: A child finds modules where this process does, whatever lies in the current folder.
_START = "import sys; sys.path[:] = sys.argv[2:]; from moebind.bench.protocol import serve; serve(sys.argv[1])"

#: Seconds that a child has to close its model when it is done.
LEAVE_TIMEOUT = 60.0

#: The events that end the conversation.
_DONE, _FAILED = "done", "failed"

#: Exceptions that are answers: the child says them and ends as usual. Others end it with a traceback.
_REASONS = (MoebindError, ValueError, TypeError, IndexError, OSError, MemoryError)


def run_child(
    module: str,
    request: Mapping[str, object],
    *,
    timeout: float | None = None,
    handlers: Mapping[str, Handler] | None = None,
) -> Any:
    """Have a function ``measure`` called in a process of its own, and return its result.

    Parameters
    ----------
    module
        The module that has it: ``measure(parent, request)`` gets a :class:`Parent` and returns plain values.
    request
        What it gets, as plain values.
    timeout
        Seconds that it may take; None: as long as it needs.
    handlers
        What is called for the events of the child, by their names.

    Raises
    ------
    FailedError
        If the child says so, dies, takes too long or writes something else than messages. It is gone then.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, module, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for us, who end it
        )
        assert process.stdin is not None  # noqa: S101  # for mypy: they are pipes
        assert process.stdout is not None  # noqa: S101
        try:
            _send(process.stdin, request)
            for event, content, waits in _messages(process.stdout, timeout):
                if event == _DONE:
                    _leave(process)
                    return content["result"]
                if event == _FAILED:
                    _leave(process)
                    raise FailedError(content["reason"])
                if handlers is None or event not in handlers:
                    raise FailedError(f"the process told of {event!r}, which nobody expects")
                answer = handlers[event](process.pid, content)
                if waits:
                    _send(process.stdin, answer)
            raise FailedError(_death(process, errors))
        finally:
            _end(process)


def _send(pipe: IO[bytes], message: object) -> None:
    with suppress(BrokenPipeError):  # it died: the end of its output says so
        pipe.write(json.dumps(message).encode() + b"\n")
        pipe.flush()


def _messages(pipe: IO[bytes], timeout: float | None) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Events as they come, what they tell, and whether the child waits for an answer; until the output ends."""
    give_up = None if timeout is None else time.monotonic() + timeout
    incomplete = b""
    while True:
        left = None if give_up is None else max(0.0, give_up - time.monotonic())
        if not select.select([pipe], [], [], left)[0]:
            raise FailedError(f"it took longer than the {timeout:g} seconds that were allowed, and was ended")
        read = os.read(pipe.fileno(), 2**16)
        if not read:
            return
        *lines, incomplete = (incomplete + read).split(b"\n")
        yield from map(_parsed, lines)


def _parsed(line: bytes) -> tuple[str, dict[str, Any], bool]:
    with suppress(ValueError, TypeError, KeyError):
        message = json.loads(line)
        event, content, waits = message["event"], message["content"], message["waits"]
        needed = {_DONE: "result", _FAILED: "reason"}.get(event)
        if isinstance(content, dict) and (needed is None or needed in content):
            return event, content, waits
    text = line.decode("utf-8", "replace")
    raise FailedError(f"the process wrote something else than a message: {text[:200]!r}")


def _death(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    code = process.wait()
    errors.seek(0)
    lines = [line for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
    last = f": {lines[-1].strip()}" if lines else ""
    if code >= 0:
        return f"the process ended with status {code}{last}"
    said = "" if code == -signal.SIGKILL else last
    return f"the process {ended_by(-code) or f'was ended by signal {-code}'}{said}"


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


class Parent:
    """The process that started this one: lines come from it, and lines go to it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        # Not from sys.stdin: an interpreter that ends would wait for what a thread reads it with.
        incomplete = b""
        while read := os.read(0, 2**16):
            *lines, incomplete = (incomplete + read).split(b"\n")
            for line in lines:
                self._lines.put(line)
        os._exit(1)  # the parent is gone, and so is whatever it wanted

    def receive(self) -> Any:
        """The next line."""
        return json.loads(self._lines.get())

    def tell(self, event: str, **content: object) -> None:
        """Write an event that needs no answer."""
        self._write(event, content, waits=False)

    def ask(self, event: str, **content: object) -> Any:
        """Write an event, and wait for what its handler returns."""
        self._write(event, content, waits=True)
        return self.receive()

    def _write(self, event: str, content: Mapping[str, object], *, waits: bool) -> None:
        self._out.write(json.dumps({"event": event, "content": content, "waits": waits}) + "\n")
        self._out.flush()


def serve(module: str) -> None:
    """The child's side of :func:`run_child`."""
    # What else writes to standard output, be it while it is imported, must not come between.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    parent = Parent(out)
    request = parent.receive()
    try:
        result = importlib.import_module(module).measure(parent, request)
    except FailedError as error:
        parent.tell(_FAILED, reason=str(error))
    except _REASONS as error:
        parent.tell(_FAILED, reason=f"{type(error).__name__}: {error}")
    else:
        parent.tell(_DONE, result=result)
