"""Build a wheel for other machines: every variant of the CPU backend, and what its flavour has besides.

The build folder is kept, so that a build that was stopped goes on where it was, object by object; ccache does the same
across folders. That is how the CUDA wheel is built, whose kernels take hours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flavours import FLAVOURS

__all__ = ["BuildError", "Built", "build", "options"]

ROOT = Path(__file__).resolve().parents[2]
#: What every wheel is built with.
DEFINES = ("MOEBIND_PORTABLE=ON",)


class BuildError(Exception):
    """The build failed; its own messages came before."""


@dataclass(frozen=True)
class Built:
    """A wheel, as it was built, and how long that took."""

    wheel: Path
    seconds: float

    def __str__(self) -> str:
        return f"{self.wheel.name}: {self.wheel.stat().st_size / 1e6:.1f} MB, built in {self.seconds:.0f} s"


def options(build_folder: str, defines: Sequence[str] = ()) -> list[str]:
    """What pip is told of a build, as the forge's workflow tells it, too."""
    words = [f"-Ccmake.define.{each}" for each in (*DEFINES, *defines)]
    return [*words, f"-Cbuild-dir={build_folder}"] if build_folder else words


def environment(flavour: str, jobs: int, architectures: str = "") -> dict[str, str]:
    """The variables of a build."""
    told = dict(FLAVOURS[flavour].environment) | {"CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)}
    return told | ({"MOEBIND_CUDA_ARCHITECTURES": architectures} if architectures else {})


def pip_wheel(python: str, source: str, folder: str, build_folder: str, defines: Sequence[str] = ()) -> list[str]:
    """The command that builds."""
    command = [python, "-m", "pip", "wheel", "--verbose", "--no-deps", "--disable-pip-version-check"]
    return [*command, *options(build_folder, defines), "--wheel-dir", folder, source]


def only_wheel(folder: Path) -> Path:
    """The wheel in a folder that has no other."""
    found = sorted(folder.glob("moebind-*.whl"))
    if len(found) != 1:
        raise BuildError(f"{folder} has {len(found)} wheels of moebind; it takes one")
    return found[0]


def build(
    flavour: str,
    folder: Path,
    build_folder: Path,
    *,
    jobs: int = 2,
    architectures: str = "",
    defines: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Built:
    """Build on this system, with its compilers, into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    told = {**os.environ, **environment(flavour, jobs, architectures), **dict(variables or {})}
    begun = time.monotonic()
    command = pip_wheel(sys.executable, str(ROOT), str(folder), str(build_folder), defines)
    if subprocess.run(["nice", "-n", "19", *command], check=False, env=told).returncode != 0:
        raise BuildError(f"the build failed; run this again, and it goes on in {build_folder}")
    return Built(only_wheel(folder), time.monotonic() - begun)
