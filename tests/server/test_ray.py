"""The examples with Ray, with replicas that are killed; ``ray_program.py`` is what they run in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packages import packages

ROOT = Path(__file__).resolve().parents[2]
#: Ray waits seconds for its own processes, which is too short for a machine that is busy otherwise; and tells nobody.
PATIENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
}


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_no_request_is_lost_with_a_replica(tiny_path: Callable[..., Path], tmp_path: Path) -> None:
    environment = packages("aiohttp>=3.12", "ray[data,serve]>=2.60")
    environment["PYTHONPATH"] += os.pathsep + str(ROOT / "examples")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    model = tmp_path / "ours.gguf"
    model.write_bytes(tiny_path(n_expert=4, n_ctx_train=1024).read_bytes())
    program = [sys.executable, ROOT / "tests" / "server" / "ray_program.py", model, tmp_path / "node", str(port)]
    done = subprocess.run(program, env=environment | PATIENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = ["clients: True", "batch: 96 96", "restarted: model", "nothing left"]
    assert [line for line in done.stdout.splitlines() if line in told] == told, done.stdout  # Ray writes there, too
    assert [each.name for each in (tmp_path / "node").iterdir() if each.suffix == ".gguf"] == ["ours.gguf"]
