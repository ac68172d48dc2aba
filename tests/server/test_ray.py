"""The examples with Ray, with replicas that are killed; ``ray_program.py`` is what they run in."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packages import packages

import moebind

ROOT = Path(__file__).resolve().parents[2]
#: Ray waits seconds for its own processes, which is too short for a machine that is busy otherwise; and tells nobody.
PATIENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
}


def run(program: str, model: Path, folder: Path) -> list[str]:
    """The lines that a program beside this file writes, which has Ray."""
    environment = packages("aiohttp>=3.12", "ray[data,serve]>=2.60")
    environment["PYTHONPATH"] += os.pathsep + str(ROOT / "examples")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "tests" / "server" / program, model, folder, str(port)]
    done = subprocess.run(command, env=environment | PATIENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def model(tiny_path: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "ours.gguf"
    path.write_bytes(tiny_path(n_expert=4, n_ctx_train=1024).read_bytes())
    return path


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_no_request_is_lost_with_a_replica(model: Path, tmp_path: Path) -> None:
    said = run("ray_program.py", model, tmp_path / "node")
    told = ["clients: True", "batch: 96 96", "restarted: model", "nothing left"]
    assert [line for line in said if line in told] == told, said  # Ray writes there, too
    assert [each.name for each in (tmp_path / "node").iterdir() if each.suffix == ".gguf"] == ["ours.gguf"]


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_what_replicas_need_and_how_long_they_may_take(model: Path, tmp_path: Path) -> None:
    said = run("ray_patience.py", model, tmp_path / "node")
    told = ["loaded: True True True", "again: True True True", "scaled: 2 False"]
    assert [line for line in said if line in told] == told, said
    alone, beside = (json.loads(line.removeprefix("needs: ")) for line in said if line.startswith("needs: "))
    for found, n_gpus in ((alone, 0), (beside, 1)):
        assert (found["num_cpus"], found["num_gpus"]) == (3, n_gpus)
        assert found["memory"] == found["host"]
        assert found["resources"] == {"host_ram": found["host"] / 2**30}
    experts = moebind.experts(model).nbytes
    weights = sum(tensor.nbytes for tensor in moebind.Gguf.from_file(model).tensors.values())
    assert alone["memory"] >= weights
    assert experts <= beside["memory"] < alone["memory"]
