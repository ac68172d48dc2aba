"""``import moebind``: its names, and what it imports for them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import moebind
from moebind import errors


def prints(code: str) -> str:
    """What a new process prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", moebind.__all__)
def test_a_name_is_there(name: str) -> None:
    assert getattr(moebind, name) is getattr(moebind, name)
    assert name in dir(moebind)


def test_every_exception_is_public() -> None:
    assert {*errors.__all__} <= {*moebind.__all__}


def test_any_name_can_be_the_first_that_is_asked_for() -> None:
    """Modules that import each other in a circle work only from some of its ends: all are tried, each in a child."""
    said = prints(
        """
import os, moebind
for name in moebind.__all__:
    child = os.fork()
    if child == 0:
        getattr(moebind, name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""
    )
    assert said == ""


def test_an_import_alone_takes_no_room() -> None:
    rooms = prints(
        "import sys, moebind; print(*{name.split('.')[1] for name in sys.modules if name[:8] == 'moebind.'})"
    )
    assert {*rooms.split()} == {"_core", "_libllama"}


@pytest.mark.parametrize("name", ["bench", "mtmd", "server"])
def test_modules_are_names_too(name: str) -> None:
    assert getattr(moebind, name) is importlib.import_module(f"moebind.{name}")


def test_a_name_that_is_not_there_says_what_to_write() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Llama'. Here it is Model.load_from_file"):
        moebind.Llama  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Modell'"):
        moebind.Modell  # noqa: B018
