"""The command line as a process: started, interrupted, piped, and without what it needs."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

MakeTiny = Callable[..., Path]
MOEBIND = Path(sys.executable).with_name("moebind")


def test_the_script_and_the_module(tiny_path: MakeTiny) -> None:
    told = [
        subprocess.run([*command, "experts", tiny_path(n_expert=4)], capture_output=True, text=True, check=True).stdout
        for command in ([MOEBIND], [sys.executable, "-m", "moebind"])
    ]
    assert told[0] == told[1]
    assert "4 experts" in told[0]


def test_without_typer() -> None:
    code = "import sys; sys.modules['typer'] = None; from moebind.cli import main; main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "moebind: the command line needs typer: pip install 'moebind[cli]'\n"


def test_importing_moebind_imports_none_of_it() -> None:
    heavy = ("moebind.bench", "moebind.cli", "typer")
    code = f"import sys, moebind; print([name for name in sys.modules if name.startswith({heavy})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", [["plan"], ["bench", "offload", "--placement", "all", "--placement", "cpu-moe"]])
def test_without_matplotlib_nothing_is_measured(command: list[str], tiny_path: MakeTiny, tmp_path: Path) -> None:
    given = [*command, str(tiny_path(n_expert=4)), "--device", "1GiB", "--plot", "plot.svg"]
    if command[0] == "bench":
        given += ["--output", "results"]
    code = f"import sys; sys.modules['matplotlib'] = None; from moebind.cli import main; main({given!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "drawn with matplotlib: pip install 'moebind[plot]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bar_has_the_name_of_the_placement(tiny_path: MakeTiny) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a window to draw it in
    command = [MOEBIND, "bench", "offload", tiny_path(n_expert=4), "--device", "loopback", "-p", "8", "-n", "2"]
    command += ["--placement", "cpu-moe", "-t", "1", "--n-ctx", "256", "--warmup", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            read = os.read(ours, 2**16)
        except OSError:  # Linux's way of saying that the other side is closed
            break
        if not read:
            break
        said += read
    os.close(ours)
    assert process.wait() == 0
    for part in (b"loading:   0%|", b"run 2 of 3: ", b"comparing 8 of 8: 100%|"):
        assert b"1 of 1, experts in host memory: " + part in said
    assert b"tokens/s" not in said


@pytest.mark.parametrize("kept", [True, False])
def test_ctrl_c_says_what_is_kept(kept: bool, tiny_path: MakeTiny, tmp_path: Path) -> None:
    model = tiny_path(n_expert=4)
    command: list[object] = [MOEBIND, "bench", "offload", model, "--device", "loopback", "-t", "1", "--no-progress"]
    command += ["-p", "8", "-n", "2", "--placement", "all", "--placement", "cpu-moe", "--prompt", "it is"]
    # Short enough that the first placement is soon there, long enough that the second is not.
    command += ["-r", "500", "--output", "results"] if kept else ["-r", "10000"]
    with subprocess.Popen(
        list(map(str, command)), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        give_up = time.monotonic() + 60
        while not (
            (tmp_path / "results" / "report.json").exists()
            if kept
            else len(psutil.Process(process.pid).children(recursive=True)) == 2
        ):
            assert time.monotonic() < give_up
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    if kept:
        assert err == "moebind: interrupted: 1 of 2 placements is in results; the same command goes on\n"
    else:
        assert err == "moebind: interrupted: nothing is kept without an output (--output FOLDER on the command line)\n"


def test_ctrl_c_leaves_nothing_behind(tiny_path: MakeTiny, tmp_path: Path) -> None:
    # Long enough that it is certainly interrupted.
    command = [MOEBIND, "bench", "offload", tiny_path(n_expert=4), "--device", "loopback", "-t", "1", "-r", "10000"]
    process = subprocess.Popen(
        [*command, "--output", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    started: list[psutil.Process] = []
    give_up = time.monotonic() + 60
    while len(started) < 2:  # the one that measures, and its worker
        assert time.monotonic() < give_up
        assert process.poll() is None
        started = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert (
        err.splitlines()[-1] == f"moebind: interrupted: 0 of 3 placements are in {tmp_path}; the same command goes on"
    )
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive


def test_a_killed_benchmark_takes_its_processes_along(tiny_path: MakeTiny) -> None:
    command = [MOEBIND, "bench", "offload", tiny_path(n_expert=4), "--device", "loopback", "-t", "1", "-r", "10000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started: list[psutil.Process] = []
    give_up = time.monotonic() + 60
    while len(started) < 2:
        assert time.monotonic() < give_up
        started = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.02)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
