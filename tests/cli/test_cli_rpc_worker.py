"""moebind rpc-worker."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

import moebind
from conftest import SMALL

MakeTiny = Callable[..., Path]
MOEBIND = Path(sys.executable).with_name("moebind")


def test_addresses_that_cannot_be_listened_on(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        told = f"moebind: 127.0.0.1:{port} is in use: end what listens there, or choose another port\n"
        assert run("rpc-worker", "--port", port, "--device", "CPU") == 1
        assert capsys.readouterr() == ("", told)
    assert run("rpc-worker", "--host", "192.0.2.1", "--allow-network", "--device", "CPU") == 1  # no machine has it
    assert capsys.readouterr().err == "moebind: 192.0.2.1 is no address of this machine\n"
    for host in ("nothing.invalid", "a..b", "::1"):
        assert run("rpc-worker", "--host", host, "--device", "CPU") == 2
        told = f"moebind: --host is '{host}'; it takes an IPv4 address or a name of this machine, such as 127.0.0.1\n"
        assert capsys.readouterr().err == told


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_worker(host: str, tiny_path: MakeTiny) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [MOEBIND, "rpc-worker", "--host", host, "--port", str(port), "--threads", "1", "--device", "CPU"]
    worker = subprocess.Popen(
        [*command, "--allow-network"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        give_up = time.monotonic() + 60
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
        _, said = worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGINT  # which shells call 130
    assert ("neither authentication nor encryption" in said) is (host == "0.0.0.0")


def test_json_once_it_listens(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [MOEBIND, "rpc-worker", "--port", str(port), "--threads", "1", "--device", "CPU", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None and worker.stderr is not None
        try:
            told = json.loads(worker.stdout.readline())
            assert run("devices", "--rpc", f"127.0.0.1:{port}") == 0  # it listens
            assert f"127.0.0.1:{port}" in capsys.readouterr().out
        finally:
            worker.send_signal(signal.SIGINT)
        assert worker.stdout.read() == ""  # what llama.cpp says of its clients is elsewhere
        assert "Accepted client connection" in worker.stderr.read()
    [cpu] = [each for each in moebind.devices() if each.name == "CPU"]
    assert told["host"] == "127.0.0.1"
    assert told["port"] == port
    [served] = told["devices"]
    assert (served["name"], served["backend"], served["type"]) == ("CPU", "CPU", "CPU")
    assert served["memory_total"] == cpu.memory_total


def test_no_json_where_it_cannot_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        command = [MOEBIND, "rpc-worker", "--port", str(used.getsockname()[1]), "--device", "CPU", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is in use" in done.stderr
