"""A wheel in a clean environment: installed from a local index, without a compiler, and tried.

The index is a folder with the wheel and all that it depends on, so that pip needs no network.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roots import STAMP, RootError, enter
from tested import TESTERS

__all__ = ["TrialError", "download", "fill_index", "libc_here", "plain_tags", "try_here", "try_in"]

ROOT = Path(__file__).resolve().parents[2]
#: Of the checkout, what those tests read; the package's sources are not among it.
TREE = (
    *("conftest.py", "pyproject.toml", "docs/numerics.md", "vendor/fetch.py", "vendor/page.py"),
    *("benchmarks", "examples", "tests", "tools/wheels"),
)


class TrialError(Exception):
    """What is to be tried is not there, or does not work."""


def plain_tags(machine: str, minor: int) -> list[str]:
    """The tags of wheels that a system with the C library 2.``minor`` takes, newest first, for pip."""
    return [f"manylinux_2_{each}_{machine}" for each in range(minor, 16, -1)] + [f"manylinux2014_{machine}"]


def libc_here() -> int:
    """The C library here, as the 36 of 2.36; where it is not GNU's, one that nearly every system has."""
    name, version = platform.libc_ver()
    return int(version.split(".")[1]) if name == "glibc" else 31


def fill_index(wheel: Path, index: Path, python: str, minor: int, wanted: Sequence[str] = TESTERS) -> None:
    """Put a wheel, its dependencies and what its tests take into a folder, for a Python and a C library.

    Parameters
    ----------
    python
        The version, as in 3.11.
    minor
        The C library's, as the 31 in 2.31.
    """
    if not wheel.is_file():
        raise TrialError(f"{wheel} is not there: tools/wheels build makes a wheel")
    tag = re.search(r"-manylinux_\d+_\d+_(\w+)$", wheel.stem)
    if tag is None:
        raise TrialError(
            f"{wheel.name} is for the system that it was built on, and if pip made it, for its processor: an index "
            "takes a manylinux wheel, which tools/wheels build makes"
        )
    index.mkdir(parents=True, exist_ok=True)
    if wheel.parent != index:
        shutil.copy(wheel, index)
    download((str(wheel), *wanted), index, python, plain_tags(tag[1], minor))


def download(wanted: Sequence[str], index: Path, python: str, tags: Sequence[str]) -> None:
    """Have pip bring wheels for another Python and another system into a folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(index)]
    command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    for tag in tags:
        command += ["--platform", tag]
    subprocess.run([*command, "--find-links", str(index), *wanted], check=True)


def installing(index: str, python: str) -> list[str]:
    """The command that installs from the index alone."""
    return [python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", index]


def _must_be_there(index: Path, model: Path) -> None:
    if not any(index.glob("moebind-*.whl")):
        raise TrialError(f"{index} is no index with a wheel of moebind: tools/wheels index makes one")
    if not model.is_file():
        raise TrialError(f"{model} is not there; without --model, the wheel is tried with a tiny one")


def try_here(index: Path, model: Path, folder: Path) -> dict[str, Any]:
    """Install into an environment in a folder, and have a model write: what ``smoke.py`` prints."""
    _must_be_there(index, model)
    venv.create(folder, with_pip=True, clear=True)
    python = str(folder / "bin/python")
    subprocess.run([*installing(str(index), python), "moebind"], check=True)
    smoke = [python, "-I", "-W", "error", str(ROOT / "tools/wheels/smoke.py"), str(model)]
    done = subprocess.run(smoke, check=False, stdout=subprocess.PIPE, text=True, cwd=folder)
    if done.returncode != 0:
        raise TrialError("the wheel was installed and does not work; what it said is above")
    return dict(json.loads(done.stdout))


def try_in(root: Path, interpreter: str, index: Path, model: Path, tests: Sequence[str] = ()) -> dict[str, Any]:
    """The same in a root of ``roots.py``, which must have no compiler; and the tests, with what they take.

    Parameters
    ----------
    tests
        Which of them; empty: those of ``tested.py``.
    """
    _must_be_there(index, model)
    if not (root / STAMP).is_file():
        raise TrialError(f"{root} is no distribution: tools/wheels root makes one")
    if os.geteuid() != 0:
        raise RootError("trying a wheel in a distribution takes root, for unshare and chroot")
    work = root / "trial"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(index, work / "index")
    for name in TREE:
        target = work / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    shutil.copy(model, work / "model.gguf")
    enter(root, ["sh", "-c", "! command -v cc && ! command -v gcc && ! command -v clang"])
    enter(root, [interpreter, "-m", "venv", "/trial/env"])
    python = "/trial/env/bin/python"
    enter(root, [*installing("/trial/index", python), "moebind"])
    smoke = [python, "-I", "-W", "error", "/trial/checkout/tools/wheels/smoke.py", "/trial/model.gguf"]
    said = dict(json.loads(enter(root, smoke, captured=True)))
    enter(root, [*installing("/trial/index", python), *TESTERS])
    made = [sys.executable, str(ROOT / "examples/demo_model.py")]  # which some of them load
    demo = Path(subprocess.run(made, check=True, capture_output=True, text=True).stdout.strip())
    (work / "cache").mkdir()
    shutil.copy(demo, work / "cache")
    enter(root, [python, "/trial/checkout/tools/wheels/tested.py", *tests], {"MOEBIND_CACHE": "/trial/cache"})
    return said
