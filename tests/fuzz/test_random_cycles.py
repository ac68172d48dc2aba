"""Random cycles through native objects are collected, and nothing uses what was freed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CYCLES = Path(__file__).parent / "cycles.py"


@pytest.mark.timeout(600)
def test_no_cycle_fails_or_stays() -> None:
    command = [sys.executable, CYCLES, "--count", "40", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "40 rounds: 0 failed\n", "")
