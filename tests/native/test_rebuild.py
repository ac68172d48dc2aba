"""Developers' builds are incremental: a change rebuilds what depends on it, and no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import moebind

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = [path.parent for path in ROOT.glob("build/cp3*/build.ninja")]

pytestmark = pytest.mark.skipif(
    not FOLDERS or str(ROOT) not in str(Path(moebind.__file__).resolve()),
    reason="moebind was not built in place: there is no build folder to look into",
)


@contextmanager
def touched(name: str) -> Iterator[None]:
    path = ROOT / name
    before = path.stat()
    try:
        os.utime(path)
        yield
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def would_build() -> list[str]:
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert ninja
    said = subprocess.run([ninja, "-C", FOLDERS[0], "-n"], capture_output=True, text=True, check=True).stdout
    return [line.partition("] ")[2] for line in said.splitlines() if line.startswith("[")]


def test_nothing_changed() -> None:
    assert not [step for step in would_build() if step.startswith("Building")]


def test_a_file_rebuilds_itself() -> None:
    with touched("native/peek/model.cpp"):
        steps = [step for step in would_build() if step.startswith(("Building", "Linking", "Reading"))]
    assert [step.rsplit("/", 1)[-1].split()[-1] for step in steps] == ["model.cpp.o", "_libllama.abi3.so"]


@pytest.mark.parametrize("name", ["native/bind/cdef.py", "native/bind/guards.py", "native/core/shim.h"])
def test_the_generator_rebuilds_the_extension_only(name: str) -> None:
    with touched(name):
        steps = [step for step in would_build() if step.startswith(("Building", "Linking", "Reading"))]
    assert steps[0] == "Reading llama.cpp's headers"
    assert not [step for step in steps if "vendor/llama.cpp" in step]
    assert all("_libllama" in step for step in steps[1:])
