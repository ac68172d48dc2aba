"""``python -m moebind.placement.worker``: a worker, by the name it had first."""

from __future__ import annotations

import socket
import subprocess
import sys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moebind.placement.worker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_it_is_the_worker_of_today() -> None:
    refused = run("--port", "0")
    assert refused.returncode == 2
    assert "--port is 0; it takes 1 to 65535" in refused.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "is in use: end what listens there, or choose another port" in done.stderr


def test_importing_it_serves_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", "import moebind.placement.worker"], check=True, timeout=60)
    assert done.returncode == 0
