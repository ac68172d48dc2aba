"""Developers' builds are incremental: a change rebuilds what depends on it, and no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture
def would_build(tmp_path: Path) -> Callable[[], list[str]]:
    """What ninja would compile, link or read now; but of ggml-vulkan, whose shaders are looked at in every build."""
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert ninja
    # Vulkan has CMake look for new shaders first, and a dry run ends with what brings ninja's own file up to date.
    copy = Path(shutil.copy(FOLDERS[0] / "build.ninja", tmp_path))

    def steps() -> list[str]:
        said = subprocess.run(
            [ninja, "-C", FOLDERS[0], "-f", copy, "-n"], capture_output=True, text=True, check=True
        ).stdout
        done = [line.partition("] ")[2] for line in said.splitlines() if line.startswith("[")]
        return [step for step in done if step.startswith(("Building", "Linking", "Reading")) and "vulkan" not in step]

    return steps


def test_nothing_changed(would_build: Callable[[], list[str]]) -> None:
    assert not would_build()


def test_a_file_rebuilds_itself(would_build: Callable[[], list[str]]) -> None:
    with touched("native/peek/model.cpp"):
        steps = would_build()
    assert [step.rsplit("/", 1)[-1].split()[-1] for step in steps] == ["model.cpp.o", "_libllama.abi3.so"]


@pytest.mark.parametrize("name", ["native/bind/cdef.py", "native/bind/guards.py", "native/core/shim.h"])
def test_the_generator_rebuilds_the_extension_only(name: str, would_build: Callable[[], list[str]]) -> None:
    with touched(name):
        steps = would_build()
    assert steps[0] == "Reading llama.cpp's headers"
    assert not [step for step in steps if "vendor/llama.cpp" in step]
    assert all("_libllama" in step for step in steps[1:])
