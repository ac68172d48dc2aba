"""CMake's configuration of a checkout, and what it says. Nothing is compiled."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Only what is hinted at is found: a machine's own CUDA toolkit must not decide what a test sees.
NOTHING_ELSE = ("-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", "-DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF")


def configure(folder: Path, *options: str, source: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Configure into a folder; without Vulkan, unless the options say otherwise."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert cmake
    assert ninja
    command = [cmake, "-S", str(source), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    command += [
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DSKBUILD_PROJECT_VERSION=1.2.3",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DMOEBIND_VULKAN=OFF",
        "-DMOEBIND_UI=OFF",
    ]
    command += [f"-DCMAKE_{kind}_COMPILER={shutil.which(name)}" for kind, name in (("C", "cc"), ("CXX", "c++"))]
    hidden = {"CUDA_HOME": "", "CUDA_PATH": "", "CUDACXX": "", "VULKAN_SDK": ""}
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, env={**os.environ, **hidden, **environment}
    )


def line(output: str, name: str) -> str:
    """A line of the summary."""
    found = re.search(rf"^--   {name} +(.*)$", output, re.MULTILINE)
    assert found is not None, output
    return found[1]


def refusal(failed: subprocess.CompletedProcess[str], option: str) -> str:
    """What CMake stopped with, in one line, without what ends it."""
    assert failed.returncode != 0
    said = " ".join(failed.stderr.split())
    assert f", or set {option}=OFF." in said, said
    return said[said.index(f"{option}=") : said.index(f", or set {option}=OFF.")]
