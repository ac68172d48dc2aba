"""Messages say ``pip install 'moebind[EXTRA]'``: no index has to have moebind, if it is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src"
NAMED = {
    extra
    for path in SOURCES.rglob("*.py")
    for extra in re.findall(r"pip install 'moebind\[([\w-]+)\]'", path.read_text(encoding="utf-8"))
}


def test_messages_name_extras_that_there_are() -> None:
    assert {"bench", "cli", "hub", "plot"} <= NAMED
    assert set(importlib.metadata.metadata("moebind").get_all("Provides-Extra", [])) >= NAMED


def test_pip_takes_the_moebind_that_is_installed() -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        pytest.skip("needs the extra [hub], so that nothing is missing")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "moebind[hub]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Requirement already satisfied: moebind[hub]" in done.stdout
    assert "Would install" not in done.stdout
