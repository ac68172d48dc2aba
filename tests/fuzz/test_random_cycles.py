"""Random cycles through native objects are collected, and nothing uses what was freed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CYCLES = Path(__file__).parent / "cycles.py"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seed", "first", "count", "without"),
    [(3, 0, 40, []), (21, 12, 1, ["engine", "pieces", "speculative"])],
    ids=["many", "a sampler is copied while the interpreter ends"],
)
def test_no_cycle_fails_or_stays(seed: int, first: int, count: int, without: list[str]) -> None:
    command = [sys.executable, CYCLES, "--count", str(count), "--first", str(first), "--seed", str(seed)]
    command += ["--without", *without]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{count} rounds: 0 failed\n", "")
