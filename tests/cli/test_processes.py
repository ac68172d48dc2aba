"""The command line as a process: started, interrupted, piped, and without what it needs."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import moebind
from conftest import SMALL

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


def test_a_reader_who_has_seen_enough(tiny_path: MakeTiny) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [MOEBIND, "experts", "--json", tiny_path(n_expert=4, n_layer=6)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_that_cannot_be_written(tiny_path: MakeTiny, tmp_path: Path) -> None:
    command = [MOEBIND, "bench", "offload", tiny_path(n_expert=4), "--device", "loopback", "-p", "8", "-n", "2"]
    command += ["--placement", "all", "-t", "1", "--n-ctx", "256", "--warmup", "0"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert "all on the device" in done.stdout  # with a question mark for what ASCII does not have


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


def test_tables_come_before_pictures(tiny_path: MakeTiny, tmp_path: Path) -> None:
    # What was found is not lost when the drawing fails all the same.
    code = (
        "from matplotlib.figure import Figure\n"
        "def fail(*_, **__):\n    raise OSError('the disk is full')\n"
        "Figure.savefig = fail\n"
        f"from moebind.cli import main; main(['plan', {str(tiny_path())!r}, '--device', '1GiB', '--plot', 'x.png'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "moebind: the disk is full\n")
    assert "It fits." in done.stdout


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
    assert b"experts in host memory: 100%|" in said
    assert b"1 of 1" not in said


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
        out, err = process.communicate(timeout=30)
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
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == f"moebind: interrupted: 0 of 3 placements are in {tmp_path}; the same command goes on\n"
    _, alive = psutil.wait_procs(started, timeout=10)
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
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_worker(host: str, tiny_path: MakeTiny) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [MOEBIND, "rpc-worker", "--host", host, "--port", str(port), "--threads", "1", "--device", "CPU"]
    worker = subprocess.Popen(
        [*command, "--allow-network"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        give_up = time.monotonic() + 30
        while True:
            try:
                [device] = moebind.add_rpc_server(f"127.0.0.1:{port}")
                break
            except moebind.RpcServerError:
                assert worker.poll() is None
                assert time.monotonic() < give_up
        assert device.description == f"127.0.0.1:{port}"
        moebind.remove_rpc_server(device.description)
        measured = moebind.bench.offload(
            tiny_path(n_expert=4),
            ["all", "cpu-moe"],
            context_params=SMALL,
            n_prompt=8,
            n_generate=2,
            prompts=["it is"],
            devices=[f"127.0.0.1:{port}"],
        )
        assert [row.failure for row in measured] == [None, None]
    finally:
        worker.send_signal(signal.SIGINT)
        _, said = worker.communicate(timeout=10)
    assert worker.returncode == -signal.SIGINT  # which shells call 130
    assert ("neither authentication nor encryption" in said) is (host == "0.0.0.0")
