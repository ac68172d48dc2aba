"""Memory of a process, as the system sees it."""

from __future__ import annotations

import os
import subprocess
import sys

from moebind.bench import resident
from moebind.bench.resident_memory import seen_from_outside


def test_resident_memory() -> None:
    found = resident(os.getpid())
    assert found is not None
    assert found.total == found.anonymous + found.file + found.shared
    assert found.total <= found.peak
    assert resident(2**30) is None


def test_processes_that_show_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert resident(ended.pid) is None  # nobody waited for it yet
    ended.wait()
    assert resident(ended.pid) is None


def test_a_process_and_its_workers_are_seen_at_once() -> None:
    told = {"workers": {"RPC0": os.getpid(), "RPC1": 2**30}, "gpu": {"CUDA0": 5}, "cards": None}
    seen = seen_from_outside(2**30, told)
    assert seen.process is None
    assert set(seen.workers) == {"RPC0"}
    assert seen.workers["RPC0"].total > 0
    assert (seen.gpu, seen.cards) == ({"CUDA0": 5}, None)
