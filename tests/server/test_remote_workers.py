"""A model over several machines: workers that play them, planned, fitted and served."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from commands import Capture, run
from serving import PATIENCE, complete, until

import moebind
from conftest import CPU
from moebind import ContextParams, Model, ModelParams, ServerError
from moebind.server import Server, supervisor

MOEBIND = Path(sys.executable).with_name("moebind")
CONTEXT = ContextParams(n_ctx=256, n_ubatch=64, n_threads=1, n_threads_batch=1)
SMALL = ["-c", "256", "-t", "1", "-ub", "64"]


@contextmanager
def worker() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A machine with a worker: its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [MOEBIND, "rpc-worker", "--port", str(port), "--threads", "1", "--device", "CPU"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: process.poll() is not None or listens(process.pid))
            yield f"127.0.0.1:{port}", process
        finally:
            process.kill()


def listens(pid: int) -> bool:
    return any(each.status == psutil.CONN_LISTEN for each in psutil.Process(pid).net_connections())


@pytest.fixture
def workers() -> Iterator[list[tuple[str, subprocess.Popen[bytes]]]]:
    with ExitStack() as stack:
        found = [stack.enter_context(worker()) for _ in range(2)]
        yield found
        known = {device.description for device in moebind.devices()}
        for endpoint, _ in found:
            if endpoint in known:
                moebind.remove_rpc_server(endpoint)


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [str(each) for each in (MOEBIND, "serve", *arguments, "--port", "0", "--json", "--", "--no-warmup")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while lines[-1] and lines[-1].rstrip() != "}":
            lines.append(process.stdout.readline())
        try:
            yield "".join(lines), process
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE)


def test_a_model_is_spread_over_two(
    workers: list[tuple[str, subprocess.Popen[bytes]]], tiny_path: Callable[..., Path]
) -> None:
    path = tiny_path(n_expert=4, n_layer=4)
    both = ",".join(endpoint for endpoint, _ in workers)
    for command in (["plan", path, "--rpc", both, *SMALL], ["fit", path, *[f"--rpc={each}" for each, _ in workers]]):
        done = subprocess.run([str(each) for each in (MOEBIND, *command, "--json")], capture_output=True, check=True)
        told = json.loads(done.stdout)
        assert [each["name"] for each in told.get("plan", told)["devices"]] == ["RPC0", "RPC1", "Host"]
    with serving(path, "--rpc", both, *SMALL) as (said, _):
        told = json.loads(said)
        devices = told["models"][0]["plan"]["devices"]
        assert [each["name"] for each in devices] == ["RPC0", "RPC1", "Host"]
        assert all(each["model"] > 0 for each in devices[:2])
        with Model.load_from_file(path, CPU) as model, model.new_context(CONTEXT) as context:
            tokens = [piece.token for piece in context.generate("it is", max_tokens=8)]
        assert complete(told["url"], n_predict=8).said["tokens"] == tokens


def test_measurements_in_other_processes_use_it(
    workers: list[tuple[str, subprocess.Popen[bytes]]],
    tiny_path: Callable[..., Path],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker serves one process at a time: the command itself must not hold it."""
    path, (endpoint, _) = tiny_path(n_expert=4), workers[0]
    small = [*SMALL, "--rpc", endpoint, "--json", "--no-progress"]
    short = ["-p", 8, "-n", 2, "--warmup", 0, "--prompt", "it is", "--placement", "all"]
    assert run("bench", "offload", path, *small, *short) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"]["devices"] == [{"kind": "server", "endpoint": endpoint}]
    assert [each["name"] for each in told["rows"][0]["allocated"]] == ["RPC0", "Host"]
    monkeypatch.setenv("MOEBIND_CACHE", str(tmp_path))
    assert run("tune", path, *small, "-p", 8, "-n", 2, "--minutes", 0) == 0  # which plans, at least
    told = json.loads(capsys.readouterr().out)
    assert told["options"][:4] == ["--rpc", endpoint, "-ngl", "all"]
    assert told["tuning"]["conditions"]["devices"] == [endpoint]
    for command in (["bench", "offload"], ["tune"]):
        assert run(*command, path, "--rpc", endpoint, "--device", "none") == 2
        assert "--rpc and --device are both given; --device takes HOST:PORT, too" in capsys.readouterr().err
    assert endpoint not in {device.description for device in moebind.devices()}


def test_a_worker_that_does_not_answer(tiny_path: Callable[..., Path], capsys: Capture) -> None:
    for command in ("plan", "fit", "serve"):
        assert run(command, tiny_path(n_expert=4), "--rpc", "127.0.0.1:9") == 1
        assert "127.0.0.1:9" in capsys.readouterr().err
    assert run("plan", tiny_path(n_expert=4), "--rpc", "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


def test_nothing_is_answered_for_a_worker_that_is_gone(
    workers: list[tuple[str, subprocess.Popen[bytes]]],
    tiny_path: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In a program whose RPC nobody watches, zeros took the place of what a lost worker should have computed.
    monkeypatch.setattr(supervisor, "DELAYS", (0.01, 0.01))
    devices = [moebind.add_rpc_server(each)[0] for each, _ in workers]
    (_, first), (endpoint, second) = workers
    with Server(
        tiny_path(n_expert=4, n_layer=4),
        model_params=ModelParams(devices=devices),
        context_params=CONTEXT,
        extra=["--no-warmup"],
    ) as server:
        assert complete(server.url).status == 200
        second.kill()
        second.wait()
        with pytest.raises((OSError, http.client.HTTPException)):
            complete(server.url)
        with pytest.raises(ServerError, match=f"llama-server: error: the RPC server {re.escape(endpoint)} "):
            server.wait_ended(PATIENCE)
    assert first.poll() is None
