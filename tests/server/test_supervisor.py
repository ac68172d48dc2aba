"""Watching over a process: readiness, restarts, giving up."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest
from serving import PATIENCE, until

from moebind import ClosedError, ServerError
from moebind.server import supervisor
from moebind.server.supervisor import Supervisor

#: A server that says it is ready once there is a file, writes what it is told to, and counts its starts.
SERVER = """
import http.server, os, signal, sys
ready, port, said = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists(ready) else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
for line in said:
    print(line, flush=True)
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    return tmp_path / "ready"


@contextmanager
def supervised(ready: Path, *said: str, code: str = SERVER, secrets: tuple[str, ...] = ()) -> Iterator[Supervisor]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", code, str(ready), str(port), *said]
    watched = Supervisor(command, os.environ, "127.0.0.1", port, secrets)
    try:
        yield watched
    finally:
        watched.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "DELAYS", (0.01, 0.01))


def kill(watched: Supervisor) -> int:
    """Kill the process: its id."""
    pid = watched.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def killed(watched: Supervisor) -> None:
    """Kill the process, and wait for the next one to be ready."""
    before = kill(watched)
    until(lambda: watched.pid not in {before, None})
    watched.wait_ready(PATIENCE)


def test_it_is_ready_when_it_says_so(ready: Path) -> None:
    with supervised(ready) as watched:
        with pytest.raises(TimeoutError, match=r"not ready after 0\.2 s"):
            watched.wait_ready(0.2)
        with pytest.raises(TimeoutError):
            watched.wait_ready(0)
        ready.touch()
        watched.wait_ready(PATIENCE)
        watched.wait_ready(0)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "1"])
def test_a_timeout_is_a_number_of_seconds(ready: Path, timeout: float) -> None:
    with supervised(ready) as watched:
        for wait in (watched.wait_ready, watched.wait_ended):
            with pytest.raises((ValueError, TypeError), match="^timeout is"):
                wait(timeout)


class _InterruptedError(Exception):
    pass


def test_a_signal_leaves_no_lock_held(ready: Path) -> None:
    """Wherever Python runs the handler: what it raises may come between the taking of a lock and what gives it back."""

    def interrupt(*_: object) -> None:
        raise _InterruptedError

    random = Random(5)
    gc.collect()
    with supervised(ready) as watched:
        before = signal.signal(signal.SIGALRM, interrupt)
        gc.disable()  # what is raised in a finalizer is lost
        try:
            for _ in range(300):
                with pytest.raises(_InterruptedError):
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-3))
                    while True:
                        with suppress(TimeoutError):
                            watched.wait_ready(0.0)
                        watched.wait_ended(0.0)
        finally:
            gc.enable()
            signal.signal(signal.SIGALRM, before)
        with ThreadPoolExecutor(1) as other:  # which does not own what this thread may have kept
            assert other.submit(watched._lock.acquire, timeout=PATIENCE).result()  # its own thread may have it a moment
            other.submit(watched._lock.release).result()


def test_what_dies_is_started_again(ready: Path, quick: None, caplog: pytest.LogCaptureFixture) -> None:
    ready.touch()
    with supervised(ready, "before") as watched, caplog.at_level(logging.WARNING, "moebind.server"):
        watched.wait_ready(PATIENCE)
        killed(watched)
        assert not watched.wait_ended(0)
    [said] = caplog.messages
    assert said == (
        "llama-server was ended by SIGKILL: by somebody, or by the system, because memory ran out; "
        "it is started again in 0.01 s (1 of 2)\nllama-server: before"
    )


def test_it_gives_up(ready: Path, quick: None) -> None:
    ready.touch()
    with supervised(ready, "last words") as watched:
        watched.wait_ready(PATIENCE)
        killed(watched)
        killed(watched)
        kill(watched)
        message = r"^llama-server was ended by SIGKILL: .* memory ran out, and 2 times before\nllama-server: last words"
        with pytest.raises(ServerError, match=message):
            watched.wait_ended(PATIENCE)
        with pytest.raises(ServerError, match=message):
            watched.wait_ready(PATIENCE)
        assert watched.pid is None
        watched.restart()  # which is a new beginning
        watched.wait_ready(PATIENCE)
        killed(watched)


def test_what_was_ready_for_long_has_all_its_restarts(
    ready: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STEADY", 0.0)
    ready.touch()
    with supervised(ready) as watched:
        watched.wait_ready(PATIENCE)
        for _ in range(4):
            killed(watched)


def test_what_never_was_ready_is_not_started_again(ready: Path, quick: None) -> None:
    code = "import sys; print('0.00.001.002 E srv  main: no room'); print('bye'); sys.exit(4)"
    with supervised(ready, code=code) as watched:
        with pytest.raises(ServerError, match=r"^llama-server ended with status 4\nllama-server: main: no room$"):
            watched.wait_ready(PATIENCE)


def test_what_cannot_be_started_is_said(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/no/such/python")
        watched = Supervisor(["/no/such/server"], os.environ, "127.0.0.1", 1)
        with pytest.raises(ServerError, match="^llama-server cannot be started: .*No such file"):
            watched.wait_ready(PATIENCE)
    watched.close()


def test_what_is_abandoned_ends(ready: Path) -> None:
    with supervised(ready) as watched:
        watched.abandon()  # maybe before there is a process
        until(lambda: not watched._thread.is_alive())
        assert watched.pid is None


def test_delays_grow() -> None:
    assert list(supervisor.DELAYS) == sorted(set(supervisor.DELAYS))


def test_closing_does_not_wait_for_a_delay(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "DELAYS", (10 * PATIENCE,))
    ready.touch()
    with supervised(ready) as watched:
        watched.wait_ready(PATIENCE)
        kill(watched)
        until(lambda: watched.pid is None)
    assert not watched._thread.is_alive()


def test_nor_does_a_restart(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "DELAYS", (10 * PATIENCE,))
    ready.touch()
    with supervised(ready) as watched:
        watched.wait_ready(PATIENCE)
        kill(watched)
        until(lambda: watched.pid is None)
        watched.restart()
        watched.wait_ready(PATIENCE)


def test_a_restart_is_another_process(ready: Path) -> None:
    ready.touch()
    with supervised(ready) as watched:
        watched.wait_ready(PATIENCE)
        first = watched.pid
        watched.restart()
        watched.wait_ready(PATIENCE)
        assert watched.pid != first


def test_closed_is_closed(ready: Path) -> None:
    with supervised(ready) as watched:
        waiting: list[type[BaseException]] = []

        def wait() -> None:
            try:
                watched.wait_ready(None)
            except ClosedError as error:
                waiting.append(type(error))

        thread = threading.Thread(target=wait)
        thread.start()
        watched.close()
        thread.join(PATIENCE)
        assert waiting == [ClosedError]
        assert watched.wait_ended(0)
        watched.close()
        for again in (lambda: watched.wait_ready(0), watched.restart):
            with pytest.raises(ClosedError, match="the server was closed"):
                again()


def test_secrets_are_not_in_the_log(ready: Path) -> None:
    ready.touch()
    lines = ("key sesame, and sesame2.", "init: api_keys: ****same")
    with supervised(ready, *lines, secrets=("sesame", "sesame2")) as watched:
        watched.wait_ready(PATIENCE)
        until(lambda: watched.log.count("\n") == 1)  # who reads them is another thread
        assert watched.log == "key ***, and ***.\ninit: api_keys: ****"


def test_the_log_has_an_end(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "KEPT", 2)
    ready.touch()
    with supervised(ready, "a", "b", "c") as watched:
        watched.wait_ready(PATIENCE)
        until(lambda: watched.log.endswith("c"))  # who reads them is another thread
        assert watched.log == "b\nc"


def test_lines_go_to_the_logger(ready: Path, caplog: pytest.LogCaptureFixture) -> None:
    ready.touch()
    with caplog.at_level(logging.DEBUG, "moebind.server"), supervised(ready, "a line") as watched:
        watched.wait_ready(PATIENCE)
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.DEBUG, "a line")]
