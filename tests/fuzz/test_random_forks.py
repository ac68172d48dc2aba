"""Children of forks at random moments end by themselves, whatever other threads were doing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FORKS = Path(__file__).parent / "forks.py"


@pytest.mark.timeout(600)
def test_no_child_fails_or_hangs() -> None:
    command = [sys.executable, FORKS, "--forks", "40", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "\n40 forks in 4 processes: 0 processes failed\n"


@pytest.mark.parametrize(("broken", "told"), [("forgotten.acquire()", " in call\n"), ("1 / 0", "ZeroDivisionError")])
def test_what_is_to_be_found_is_found(tiny_path: Callable[..., Path], broken: str, told: str) -> None:
    """The runner itself, with a call that misbehaves in children."""
    code = f"""
import os, sys, threading
sys.path.insert(0, {str(FORKS.parent)!r})
import forks

parent, forgotten = os.getpid(), threading.Lock()
forgotten.acquire()

def call(model, chance):
    if os.getpid() != parent:
        {broken}

forks.HANG_SECONDS = 1
forks.DOES = dict.fromkeys("abc", call)
forks.run_round(sys.argv[1], seed=0, number=7, forks=1)
"""
    done = subprocess.run([sys.executable, "-c", code, tiny_path()], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "round 7: threads in " in done.stdout
    assert told in done.stderr
