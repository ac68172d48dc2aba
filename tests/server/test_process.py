"""llama-server as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from held import descriptors
from serving import PATIENCE, until
from test_keeper import STUBBORN, all_gone

from moebind import ServerError
from moebind._core.endings import ended_by
from moebind.server.process import Process, program


class Heard:
    """What a process wrote, and whether it ended."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ended = threading.Event()

    def start(self, code: str, **environment: str) -> Process:
        command = [sys.executable, "-c", code]
        return Process(command, {**os.environ, **environment}, self.lines.append, self.ended.set)


def test_the_program_is_llama_server() -> None:
    done = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True)
    assert "version:" in done.stdout + done.stderr


def test_a_missing_program_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.exists", lambda path: False)
    with pytest.raises(ServerError, match=r"bin/llama-server is missing: install moebind again"):
        program()


def test_lines_environment_and_end() -> None:
    heard = Heard()
    started = heard.start(
        "import os, sys; print(os.environ['X'], flush=True); sys.stderr.buffer.write(b'\\xff!\\nlast'); sys.exit(3)",
        X="y",
    )
    assert heard.ended.wait(PATIENCE)
    assert heard.lines == ["y", "\ufffd!", "last"]
    assert started.ending == "ended with status 3"
    assert not started.alive
    started.end()  # which changes nothing
    started.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_is_named(number: signal.Signals) -> None:
    heard = Heard()
    started = heard.start("import time; print(1, flush=True); time.sleep(1000)")
    until(lambda: heard.lines)
    os.kill(started.pid, number)
    assert heard.ended.wait(PATIENCE)
    assert started.ending == ended_by(number)


def test_what_does_not_end_is_killed() -> None:
    heard = Heard()
    started = heard.start(STUBBORN)
    until(lambda: heard.lines)
    command = psutil.Process(started.pid)
    processes = [command, *command.children()]
    assert len(processes) == 2
    started.end(grace=0.1)
    assert started.ending == "was ended by SIGKILL: by somebody, or by the system, because memory ran out"
    assert all_gone(processes)


def test_a_killed_keeper_leaves_nothing() -> None:
    heard = Heard()
    started = heard.start(STUBBORN)
    until(lambda: heard.lines)
    command = psutil.Process(started.pid)
    processes = [command, *command.children()]
    keeper = command.parent()
    assert keeper is not None
    keeper.kill()
    assert heard.ended.wait(PATIENCE)
    assert started.ending == "was ended by SIGKILL: by somebody, or by the system, because memory ran out"
    assert all_gone(processes)


def test_it_can_be_killed_without_waiting() -> None:
    heard = Heard()
    started = heard.start(STUBBORN)
    until(lambda: heard.lines)
    started.kill()
    assert heard.ended.wait(PATIENCE)


def test_in_the_child_of_a_fork_it_is_left_alone() -> None:
    heard = Heard()
    started = heard.start(STUBBORN)
    until(lambda: heard.lines)
    child = os.fork()
    if child == 0:
        started.end()
        started.kill()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert started.alive
    started.end(grace=0.1)


def test_a_command_that_cannot_be_run() -> None:
    heard = Heard()
    started = Process(["/no/such/program"], os.environ, heard.lines.append, heard.ended.set)
    assert heard.ended.wait(PATIENCE)
    assert heard.lines == ["/no/such/program: No such file or directory"]
    assert started.ending == "ended with status 127"


def test_no_descriptors_are_left() -> None:
    before = descriptors()
    for _ in range(3):
        heard = Heard()
        heard.start("")
        assert heard.ended.wait(PATIENCE)
    assert descriptors() <= before
