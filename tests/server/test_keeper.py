"""The keeper of a process: a program of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from serving import PATIENCE, until

from moebind.server import keeper

#: A command with a process of its own, both of which end by no signal but SIGKILL.
STUBBORN = (
    "import os, signal, sys, time\n"
    "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n    signal.signal(number, signal.SIG_IGN)\n"
    "if os.fork():\n    print('started', flush=True)\n"
    "time.sleep(1000)\n"
)
#: Asks for a keeper, and stays.
ASKING = (
    "import os, subprocess, sys, threading, time\n"
    "python, keeper, *command = sys.argv[1:]\n"
    "def ask():\n    subprocess.Popen([python, '-I', '-S', keeper, str(os.getpid()), '1', '', *command])\n"
    "thread = threading.Thread(target=ask)\nthread.start()\nthread.join()\ntime.sleep(1000)\n"
)


def start(*command: str, parent: int | None = None, folder: str = "") -> subprocess.Popen[str]:
    given = [sys.executable, "-I", "-S", keeper.__file__, str(parent or os.getpid()), "1", folder, *command]
    return subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def of(process: subprocess.Popen[str]) -> psutil.Process:
    """The command's process."""
    assert process.stdout is not None
    return psutil.Process(int(process.stdout.readline()))


def stubborn(process: subprocess.Popen[str]) -> list[psutil.Process]:
    command = of(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    until(command.children)
    return [command, *command.children()]


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


@pytest.mark.parametrize("status", [0, 3])
def test_it_ends_as_the_command_ends(status: int, tmp_path: Path) -> None:
    process = start(sys.executable, "-c", f"import sys; print('said'); sys.exit({status})", folder=str(tmp_path))
    said = process.communicate(timeout=PATIENCE)[0]
    assert said.splitlines()[1:] == ["said"]
    assert process.returncode == status
    assert tmp_path.exists()  # it is started again with it


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    process = start(str(tmp_path / "none"))
    assert "none: No such file or directory" in process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 127


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_forwarded(number: signal.Signals) -> None:
    with start(
        sys.executable,
        "-c",
        # What started the tests may ignore some, as nohup does, and a child inherits that.
        "import signal, time; [signal.signal(number, signal.SIG_DFL) for number in (1, 2, 15)]; "
        "print(1, flush=True); time.sleep(1000)",
    ) as process:
        command = of(process)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
        assert not command.is_running()


def test_what_the_command_started_ends_with_it() -> None:
    with start(sys.executable, "-c", STUBBORN) as process:
        processes = stubborn(process)
        processes[0].kill()
        assert process.wait(PATIENCE) == 128 + signal.SIGKILL
        assert all_gone(processes)


def test_the_command_ends_with_the_keeper() -> None:
    with start(sys.executable, "-c", STUBBORN) as process:
        command, other = stubborn(process)
        process.kill()
        assert all_gone([command])
        other.kill()  # moebind.server.process sees to these


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_everything_ends_with_who_asked(number: signal.Signals) -> None:
    # By a thread that ends long before: the system's own signal would come then.
    given = [sys.executable, "-c", ASKING, sys.executable, keeper.__file__, sys.executable, "-c", STUBBORN]
    with subprocess.Popen(given, stdout=subprocess.PIPE, text=True) as process:
        processes = stubborn(process)
        assert all(each.is_running() for each in processes)
        process.send_signal(number)
        process.wait(PATIENCE)
        assert all_gone(processes)


def test_who_asked_was_gone_before_it_looked(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/keys").touch()
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    process = start(sys.executable, "-c", STUBBORN, parent=gone.pid, folder=str(tmp_path / "folder"))
    process.communicate(timeout=PATIENCE)
    assert not (tmp_path / "folder").exists()
    assert process.returncode == 128 + signal.SIGKILL
