"""The program moebind, before it imports the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import moebind
import moebind_launcher

MOEBIND = Path(sys.executable).with_name("moebind")
VERSIONS = f"moebind {moebind.__version__}, llama.cpp {moebind.llama_cpp_version}"


def test_versions_are_told_without_the_package() -> None:
    code = (
        "import sys; sys.argv = ['moebind', '--version']; import moebind_launcher; moebind_launcher.main()\n"
        "print(*sorted(name for name in sys.modules if name.startswith(('moebind', 'numpy', 'typer'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, imported = done.stdout.splitlines()
    assert told == VERSIONS
    assert imported.split() == [
        "moebind",
        "moebind._core",
        "moebind._core.version",
        "moebind._libllama",
        "moebind._libllama.lib",
        "moebind_launcher",
    ]


def test_the_module_needs_no_more_than_the_package() -> None:
    code = (
        "import runpy, sys; sys.argv = ['moebind', '--version']\n"
        "runpy.run_module('moebind', run_name='__main__')\n"
        "print(*{'typer', 'click', 'moebind.cli'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [VERSIONS, ""]


def test_where_the_package_is_imported_it_stays_as_it_is() -> None:
    assert moebind_launcher.versions() == VERSIONS
    assert sys.modules["moebind"] is moebind


def test_the_program_and_the_module_tell_the_same() -> None:
    for command in ([MOEBIND], [sys.executable, "-m", "moebind"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"{VERSIONS}\n"
    done = subprocess.run([MOEBIND, "--versoin"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("moebind: ")


def test_garbage_is_collected_from_the_command_on() -> None:
    code = (
        "import gc, sys; sys.argv = ['moebind', 'devices', '--json']; import moebind.cli.show_devices as command\n"
        "from moebind_launcher import main\n"
        "shown = command.show_json\n"
        "command.show_json = lambda value: print(gc.isenabled(), gc.get_freeze_count() > 10_000)\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True True"]


def test_output_that_nobody_takes_has_a_status() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([MOEBIND, "devices"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "moebind: No space left on device\n", done.stderr
