"""Build a wheel for other machines: every variant of the CPU backend, and what its flavour has besides.

The build folder is kept, and so is the environment with what builds: a build that was stopped goes on where it was,
object by object. pip's own environments have another name each time, which each object's command has in it, as the
folder of nvcc's headers for one: all would be compiled again. ccache does the same across checkouts. That is how the
CUDA wheel is built, whose kernels take hours.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flavours import FLAVOURS

__all__ = ["CROSS", "BuildError", "Built", "Cross", "build", "options"]

ROOT = Path(__file__).resolve().parents[2]
#: What every wheel is built with.
DEFINES = ("MOEBIND_PORTABLE=ON",)
QUIET = ("--disable-pip-version-check",)
#: What an environment's Python is asked: what the build takes besides, CMake and CUDA's toolkit for two.
ASKS = "import json; from scikit_build_core.build import get_requires_for_build_wheel as get; print(json.dumps(get()))"


@dataclass(frozen=True)
class Cross:
    """A kind of processor that is built for on another one.

    Parameters
    ----------
    toolchain
        What CMake is told of its compilers.
    libraries
        Where the libraries of its system are, of which some are put into a wheel.
    """

    toolchain: Path
    libraries: tuple[Path, ...]


#: By their names in ``platform.machine()``.
CROSS = {"aarch64": Cross(ROOT / "cmake/aarch64-linux.cmake", (Path("/usr/aarch64-linux-gnu/lib"),))}


class BuildError(Exception):
    """The build failed; its own messages came before."""


@dataclass(frozen=True)
class Built:
    """A wheel, as it was built, and how long that took."""

    wheel: Path
    seconds: float

    def __str__(self) -> str:
        return f"{self.wheel.name}: {self.wheel.stat().st_size / 1e6:.1f} MB, built in {self.seconds:.0f} s"


def options(build_folder: str, more: Sequence[str] = ()) -> list[str]:
    """What pip is told of a build, as the forge's workflow tells it, too."""
    words = [f"-Ccmake.define.{each}" for each in (*DEFINES, *more)]
    return [*words, f"-Cbuild-dir={build_folder}"] if build_folder else words


def environment(flavour: str, jobs: int, architectures: str = "", machine: str = "") -> dict[str, str]:
    """The variables of a build."""
    told = dict(FLAVOURS[flavour].environment) | {"CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)}
    if architectures:
        told["MOEBIND_CUDA_ARCHITECTURES"] = architectures
    if machine:
        told["_PYTHON_HOST_PLATFORM"] = f"linux-{machine}"  # what Python takes for the wheel's name
    return told


def defines(variants: Sequence[str] = (), machine: str = "") -> list[str]:
    """What CMake is told besides ``DEFINES``."""
    told = [f"MOEBIND_VARIANTS={';'.join(variants)}"] if variants else []
    return [*told, f"CMAKE_TOOLCHAIN_FILE={CROSS[machine].toolchain}"] if machine else told


def pip_wheel(python: str, source: str, folder: str, build_folder: str, more: Sequence[str] = ()) -> list[str]:
    """The command that builds."""
    command = [python, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation", *QUIET]
    return [*command, *options(build_folder, more), "--wheel-dir", folder, source]


def toolchain(folder: Path, variables: dict[str, str]) -> str:
    """The Python of an environment that has what builds with those variables; it is made unless it is there."""
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", *QUIET]
    listed = re.search(r"^requires = (\[.*\])$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if listed is None:
        raise BuildError("pyproject.toml has no list 'requires'")
    subprocess.run([*install, *json.loads(listed[1])], check=True)
    asked = [str(python), "-c", ASKS]
    more = subprocess.run(asked, check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **variables})
    if wanted := json.loads(more.stdout):
        subprocess.run([*install, *wanted], check=True)
    return str(python)


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
    variants: Sequence[str] = (),
    machine: str = "",
) -> Built:
    """Build on this system into a folder.

    Parameters
    ----------
    architectures
        For which cards, with CUDA; empty: all.
    variants
        For which kinds of processors; empty: all.
    machine
        One of ``CROSS``; empty: this machine's.
    """
    shutil.rmtree(folder, ignore_errors=True)
    told = environment(flavour, jobs, architectures, machine)
    begun = time.monotonic()
    python = toolchain(build_folder.with_name(f"{build_folder.name}-environment"), FLAVOURS[flavour].environment)
    command = pip_wheel(python, str(ROOT), str(folder), str(build_folder), defines(variants, machine))
    if subprocess.run(["nice", "-n", "19", *command], check=False, env={**os.environ, **told}).returncode != 0:
        raise BuildError(f"the build failed; run this again, and it goes on in {build_folder}")
    return Built(only_wheel(folder), time.monotonic() - begun)
