"""Watches over llama-server: readiness, what it says, and starting it again when it dies."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from moebind._core import checks
from moebind._core.fork import new_in_child
from moebind.errors import ClosedError, ServerError
from moebind.server.process import Process

__all__ = ["Supervisor", "logger"]

#: Where it says what happened (INFO, WARNING), and what llama-server says (DEBUG).
logger = logging.getLogger("moebind.server")

#: Seconds before a server that died is started again, the first time and each time after that.
DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)
#: Seconds that it has to be ready for, so that the next delay is the first one again.
STEADY = 60.0
#: Lines that are kept of what it says, and those of them that an error shows.
KEPT, SHOWN = 1000, 4
#: An error in llama-server's log, without the time and where it comes from; or of its command line.
_ERROR = re.compile(r"(?:\[ *\d+\] )?[\d.]+ E (?:\w+ +)?(.*)|(error\b.*)")
#: What C++ says of an option's value that is no number.
_NO_NUMBER = re.compile(r'(error while handling argument "[^"]*": )sto\w+$')
#: Its trace shows how the only key ends.
_END_OF_KEY = re.compile(r"(api_keys: \*{4}).*")
#: Seconds between questions whether it is ready, at first and at most.
ASK_FIRST, ASK_MOST = 0.02, 0.5
#: Seconds between looks of whoever waits.
WAKE = 0.05
#: Seconds that an answer may take.
ANSWER = 5.0


class Supervisor:
    """Runs llama-server until it is closed, or died too often.

    Parameters
    ----------
    command, environment
        As for :class:`Process`.
    host, port
        Where it listens, as a client reaches it.
    secrets
        Texts that are replaced wherever llama-server writes them.
    folder
        As for :class:`Process`.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        host: str,
        port: int,
        secrets: Sequence[str] = (),
        folder: str = "",
    ) -> None:
        self._command, self._environment = command, environment
        self._host, self._port, self._folder = host, port, folder
        self._secrets = sorted(secrets, key=len, reverse=True)
        self._lines: deque[str] = deque(maxlen=KEPT)
        #: Guards all that follows; whoever changes one of it notifies. What a signal's handler raises must not leave it
        #: held, as it could in a condition's __enter__, which is Python's: so the lock itself is entered, and whoever
        #: waits in the main thread does so without it.
        self._lock = new_in_child(threading.RLock())
        self._changed = threading.Condition(self._lock)
        self._process: Process | None = None
        self._ready = self._closed = self._requested = False
        self._failure: str | None = None
        self._thread = self._watched()

    @property
    def pid(self) -> int | None:
        """The process id of llama-server; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.ending is None else None

    @property
    def log(self) -> str:
        """The last lines that llama-server wrote."""
        return "\n".join(self._lines.copy())

    def wait_ready(self, timeout: float | None) -> None:
        """Wait until llama-server answers.

        Raises
        ------
        TimeoutError
            If it does not within that many seconds; it goes on.
        ServerError
            If it ended for good.
        ClosedError
            If it was closed.
        """
        most = None if timeout is None else checks.number("timeout", timeout, 0.0)
        if not _until(lambda: bool(self._ready or self._failure or self._closed), most):
            raise TimeoutError(f"llama-server is not ready after {most:g} s{self._last_lines()}")
        closed, failure = self._closed, self._failure
        if closed:
            raise ClosedError("the server was closed")
        if failure is not None:
            raise ServerError(failure)

    def wait_ended(self, timeout: float | None = None) -> bool:
        """Wait until it was closed: whether it was within that many seconds.

        Raises
        ------
        ServerError
            If it ended for good by itself.
        """
        most = None if timeout is None else checks.number("timeout", timeout, 0.0)
        _until(lambda: bool(self._failure or self._closed), most)
        closed, failure = self._closed, self._failure
        if failure is not None and not closed:
            raise ServerError(failure)
        return closed

    def restart(self) -> None:
        """End llama-server and have it started again, also after it ended for good."""
        with self._lock:
            if self._closed:
                raise ClosedError("the server was closed")
            self._requested, self._ready, self._failure = True, False, None
            process = self._process
            self._changed.notify_all()
        if process is not None:
            process.end()
        with self._lock:
            if self._closed:
                return
            if not self._thread.is_alive():  # it had given up
                self._thread = self._watched()

    def close(self) -> None:
        """End llama-server; nothing is started any more."""
        with self._lock:
            self._closed, self._ready = True, False
            process = self._process
            self._changed.notify_all()
        if process is not None:
            process.end()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def abandon(self) -> None:
        """End it at once: when nobody refers to it any more, and at the end of the interpreter."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()

    def _watched(self) -> threading.Thread:
        thread = threading.Thread(target=self._watch, name="moebind.server", daemon=True)
        thread.start()
        return thread

    def _watch(self) -> None:
        restarts, was_ready = 0, False
        while True:
            with self._lock:
                if self._closed:
                    return
                if self._requested:
                    restarts, self._requested = 0, False
                try:
                    process = Process(self._command, self._environment, self._heard, self._process_ended, self._folder)
                except Exception as error:  # whoever waits has to hear of it
                    self._failure = f"llama-server cannot be started: {error}"
                    self._changed.notify_all()
                    return
                self._process = process
            if self._closed:  # abandoned meanwhile
                process.kill()
            ready_at = self._until_end(process)
            was_ready |= ready_at is not None
            with self._lock:
                self._ready = False
                if self._closed:
                    return
                if self._requested:
                    continue
                if ready_at is not None and time.monotonic() - ready_at > STEADY:
                    restarts = 0
                if not was_ready or restarts == len(DELAYS):
                    after = f", and {restarts} times before" if restarts else ""
                    self._failure = f"llama-server {process.ending}{after}{self._last_lines()}"
                    self._changed.notify_all()
                    return
                delay = DELAYS[restarts]
                restarts += 1
            message = "llama-server %s; it is started again in %g s (%d of %d)%s"
            logger.warning(message, process.ending, delay, restarts, len(DELAYS), self._last_lines())
            with self._lock:
                self._changed.wait_for(lambda: self._closed or self._requested, delay)

    def _until_end(self, process: Process) -> float | None:
        """Wait for the process to end: when it became ready, if it did."""
        ask, ready_at = ASK_FIRST, None
        while True:
            with self._lock:
                if self._changed.wait_for(lambda: process.ending is not None, ask if ready_at is None else None):
                    return ready_at
            ask = min(2 * ask, ASK_MOST)
            if self._answers() and process.alive:
                with self._lock:
                    ready_at, self._ready = time.monotonic(), not (self._closed or self._requested)
                    self._changed.notify_all()

    def _answers(self) -> bool:
        """Whether it says that it can be asked; while a model is loaded it says no."""
        import http.client

        connection = http.client.HTTPConnection(self._host, self._port, timeout=ANSWER)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _heard(self, line: str) -> None:
        for secret in self._secrets:
            line = line.replace(secret, "***")
        line = _END_OF_KEY.sub(r"\1", line)
        line = _NO_NUMBER.sub(r"\1its value is no number, or too large a one", line)
        self._lines.append(line)
        logger.debug("%s", line)

    def _process_ended(self) -> None:
        with self._lock:
            self._changed.notify_all()

    def _last_lines(self) -> str:
        lines = [line for line in self._lines.copy() if line.strip()]
        # What llama-server says of itself as an error is the reason; what else it said last may be.
        errors = [found[1] or found[2] for line in lines if (found := _ERROR.match(line))] or lines
        return "".join(f"\nllama-server: {line}" for line in errors[-SHOWN:])


def _until(condition: Callable[[], bool], timeout: float | None) -> bool:
    """Wait until something is so, or so many seconds: whether it is."""
    give_up = None if timeout is None else time.monotonic() + timeout
    while not condition():
        rest = WAKE if give_up is None else min(WAKE, give_up - time.monotonic())
        if rest <= 0:
            return False
        time.sleep(rest)
    return True
