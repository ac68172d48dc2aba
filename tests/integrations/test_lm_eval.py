"""The model for lm-evaluation-harness, with the harness itself, which is installed beside the environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packages import packages

PROGRAM = Path(__file__).with_name("with_lm_eval.py")


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_harness_has_it_as_a_model() -> None:
    environment = packages("lm_eval>=0.4.13", "huggingface_hub>=1.31")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout
