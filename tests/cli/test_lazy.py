"""Commands that are imported when they are asked for, and commands of other packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moebind.cli.app import COMMANDS

NAME = "moebind-more"
CODE = """
import typer
from typing import Annotated

def hello(name: Annotated[str, typer.Argument()] = "you", loud: bool = False) -> None:
    '''Greet somebody.'''
    print(f"hello {name}{'!' * loud}")

def wrong() -> None:
    '''Complain.'''
    raise ValueError("n_ctx is 7; it takes more")

group = typer.Typer(help="Several commands.")
single = typer.Typer()

@group.command()
def one() -> None:
    '''The first.'''
    print("one of two")

@group.command()
def two() -> None:
    '''The second.'''

@single.command()
def alone(n: int = 1) -> None:
    '''By itself.'''
    print("alone", n)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another distribution, which adds commands; some of them are broken."""
    folder = tmp_path_factory.mktemp("more")
    (folder / "more_commands.py").write_text(CODE, encoding="utf-8")
    (folder / "broken_commands.py").write_text("import a_module_that_is_not_there\n", encoding="utf-8")
    info = folder / f"{NAME.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n", encoding="utf-8")
    entries = {
        "hello": "more_commands:hello",
        "wrong": "more_commands:wrong",
        "several": "more_commands:group",
        "single": "more_commands:single",
        "missing": "broken_commands:hello",
        "nothing": "more_commands:no_such_name",
        "number": "more_commands:__doc__",
        "plan": "more_commands:hello",
    }
    lines = ["[moebind.commands]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def moebind(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); from moebind.cli import main; main({list(arguments)!r})"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (["hello"], "hello you\n"),
        (["hello", "Ada", "--loud"], "hello Ada!\n"),
        (["several", "one"], "one of two\n"),
        (["single", "--n", "3"], "alone 3\n"),
    ],
)
def test_commands_of_other_packages(installed: Path, arguments: list[str], out: str) -> None:
    done = moebind(installed, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, out, "")


def test_their_errors_are_one_line_too(installed: Path) -> None:
    done = moebind(installed, "wrong")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "moebind: --ctx-size is 7; it takes more\n"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("nothing", "AttributeError: module 'more_commands' has no attribute 'no_such_name'"),
        ("number", "TypeError: more_commands:__doc__ is a NoneType; it takes a function, or a typer.Typer"),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["a", "--b", "--help"]])
def test_broken_ones_say_why(installed: Path, name: str, reason: str, arguments: list[str]) -> None:
    done = moebind(installed, name, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    said = f"moebind: moebind {name} is from the package {NAME}, which cannot be loaded: {reason}\n"
    assert done.stderr == said


def test_broken_ones_leave_the_others_alone(installed: Path) -> None:
    done = moebind(installed, "--help")
    assert done.returncode == 0
    listed = [line.split() for line in done.stdout.partition("Commands:")[2].splitlines() if line]
    assert [words[0] for words in listed] == [
        *COMMANDS,
        *("hello", "missing", "nothing", "number", "several", "single", "wrong"),
    ]
    told = {words[0]: " ".join(words[1:]) for words in listed}
    assert told["hello"] == "Greet somebody."
    assert told["missing"].startswith("Cannot be loaded: ModuleNotFoundError")
    assert told["plan"].startswith("Tell what a model")
    assert done.stderr == f"moebind: warning: the package {NAME} has a command 'plan', which is one of moebind's own\n"


def test_only_what_is_asked_for_is_imported(installed: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "from moebind.cli import main\n"
        "try:\n    main(['experts', 'none.gguf'])\n"
        "except SystemExit:\n    pass\n"
        "print(*(name for name in sys.modules if name.startswith('moebind.cli.') or 'commands' in name))\n"
        "print(*(name for name in sys.modules if name.startswith(('moebind.bench', 'importlib.metadata'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported, heavy = done.stdout.splitlines()
    modules = {COMMANDS[name] for name in COMMANDS} & set(imported.split())
    assert modules == {"moebind.cli.experts"}
    assert "more_commands" not in imported
    assert "moebind.bench" not in heavy


def test_what_was_meant_is_told() -> None:
    for given, meant in (("plna", "plan"), ("exprts", "experts")):
        done = moebind(Path(), given)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"moebind: there is no command {given}; did you mean {meant}?\n"


def test_completion(installed: Path) -> None:
    for words, cursor, expected in (("moebind rp", 1, ["rpc-worker"]), ("moebind hel", 1, ["hello"])):
        code = (
            f"import os, sys; sys.path.insert(0, {str(installed)!r})\n"
            f"os.environ.update(_MOEBIND_COMPLETE='complete_bash', COMP_WORDS={words!r}, COMP_CWORD='{cursor}')\n"
            "from moebind.cli import main; main([])"
        )
        completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (completed.returncode, completed.stdout.split(), completed.stderr) == (0, expected, "")
