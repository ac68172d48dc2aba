"""Malformed files end in an exception or a working model, whatever opens them."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import gguf_changes
import gguf_mutants

COUNT = 600


@pytest.mark.timeout(600)
def test_no_mutant_crashes_hangs_or_grows(demo_path: Path) -> None:
    report = gguf_mutants.run(COUNT, seed=20, demo=demo_path)
    assert report.findings == []
    assert report.mutants == COUNT
    # They are not all refused at the door, nor do they all work.
    for name in gguf_mutants.ENTRIES:
        for outcome in ("works", "refused"):
            assert report.outcomes[f"{name}: {outcome}"] > COUNT / 20


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("os.kill(os.getpid(), 11)", "the process ended with -11"),
        ("time.sleep(60)", "hangs"),
        ("while True: pass", "hangs"),
        ("globals().update(grown=bytearray(b'1') * 2**28)", "took more memory"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_what_is_to_be_found_is_found(tmp_path: Path, broken: str, told: str) -> None:
    """The runner itself, with an entry that misbehaves at the second mutant."""
    code = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import gguf_mutants

def entry(path, calls=[]):
    calls.append(path)
    if len(calls) == 8:  # six whole models come first
        {broken}

gguf_mutants.ENTRIES.clear()
gguf_mutants.ENTRIES["broken"] = entry

if __name__ == "__main__":
    report = gguf_mutants.run(3, 1, hang=5)
    print(report.mutants, report.findings)
"""

    script = tmp_path / "broken.py"  # workers import it
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert told in done.stdout, done.stderr
    assert "mutant 1, broken" in done.stdout


def test_changes_follow_each_other(tmp_path: Path) -> None:
    """Each takes whatever others have left, such as a tensor without dimensions."""
    file = gguf_changes.bases(tmp_path)[0].file
    tensor, rng = file.tensors[0], random.Random(1)
    file.tensors, lengths = [tensor], set()
    for _ in range(200):
        gguf_changes._tensor_shape(rng, file)
        lengths.add(len(tensor.shape))
    assert lengths == {0, 1, 2, 3, 4, 5}
