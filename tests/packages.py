"""Packages that some tests need and no extra of the tests has: installed once, beside the environment."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import fetch


def packages(*requirements: str) -> dict[str, str]:
    """Variables for a process that imports these packages, from a folder in the cache. Skips where pip has none."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = hashlib.sha256("\n".join([python, *requirements]).encode()).hexdigest()[:16]
    folder = Path(fetch.cache_folder()) / f"packages-{name}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, "--target", unfinished, *requirements], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            pytest.skip(f"pip could not install {', '.join(requirements)}: {done.stderr.strip().splitlines()[-1]}")
        try:
            unfinished.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(unfinished, ignore_errors=True)
    return os.environ | {"PYTHONPATH": str(folder)}
