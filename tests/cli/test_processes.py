"""The command line as a process: started, interrupted, piped, and without what it needs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
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
    assert (process.returncode, out, err) == (130, "", "")
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
