"""Threads that do everything at once with one model: nothing of it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

THREADS = Path(__file__).parent / "threads.py"


def test_no_thread_fails() -> None:
    command = [sys.executable, THREADS, "--seconds", "3", "--threads", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" things in 3 threads: 0 failed\n")
    assert not done.stdout.startswith("0 times")


def test_what_is_to_be_found_is_found() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(THREADS.parent)!r})
import threads

def call(model, chance):
    raise ValueError("this one")

threads.DOES = {{"broken": call}}
sys.exit(threads.main(["--threads", "1"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "broken: Traceback" in done.stdout
    assert "ValueError: this one" in done.stdout
    assert done.stdout.endswith("1 times one of 1 things in 1 threads: 1 failed\n")
