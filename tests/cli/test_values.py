"""Values of options, read without what typer reads them with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import typer

from moebind.cli.signatures import completed
from moebind.cli.values import OwnCommand, read_plainly


def read(*arguments: str, kind: type[Any] | None = OwnCommand) -> dict[str, Any]:
    """What a command gets, with readers from here or with typer's own."""
    got: dict[str, Any] = {}

    def command(
        word: Annotated[str | None, typer.Argument()] = None,
        texts: Annotated[list[str] | None, typer.Option("--text")] = None,
        number: Annotated[int, typer.Option("--number", min=2)] = 3,
        share: Annotated[float | None, typer.Option("--share")] = None,
        switch: Annotated[bool | None, typer.Option("--switch/--no-switch")] = None,
        path: Annotated[Path | None, typer.Option("--path", exists=True)] = None,
    ) -> None:
        got.update(word=word, texts=texts, number=number, share=share, switch=switch, path=path)

    holder = typer.Typer(add_completion=False, rich_markup_mode=None)
    holder.command("keep", cls=kind)(completed(command))
    typer.main.get_command(holder)(list(arguments), standalone_mode=False)
    return got


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["word"],
        [""],
        ["--text", "a", "--text", " b "],
        ["--number", "7", "--share", "0.5"],
        ["--switch"],
        ["--no-switch"],
        ["--path", "."],
        ["w\udcff\N{SNOWMAN}"],
    ],
)
def test_values_are_typers(arguments: list[str]) -> None:
    assert read(*arguments) == read(*arguments, kind=None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--number", "many"], "--number is 'many'; it takes a whole number"),
        (["--number", "1"], "--number is 1; it takes 2 or more"),
        (["--share", "half"], "--share is 'half'; it takes a number"),
        (["--path", "no/such/file"], "does not exist"),
        (["--switch=maybe"], "does not take a value"),
        (["--text"], "requires an argument"),
    ],
)
def test_errors_are_those_of_before(arguments: list[str], said: str) -> None:
    messages = []
    for kind in (OwnCommand, None):
        try:
            read(*arguments, kind=kind)
        except Exception as error:  # typer's classes moved between its versions
            messages.append(str(getattr(error, "message", error)))
    assert said in messages[0]
    assert messages[0] == messages[1]


def test_other_versions_of_typer_are_left_alone() -> None:
    param = SimpleNamespace(name="text")
    assert read_plainly([param]) == [param]
    assert vars(param) == {"name": "text"}
    later = SimpleNamespace(name="text", get_runtime_param=print)  # which may tell the type elsewhere
    assert read_plainly([later]) == [later]
    assert later.get_runtime_param is print


def test_a_plan_needs_no_adapters(tiny_path: Callable[..., Path]) -> None:
    code = (
        "import sys\n"
        "from moebind_launcher import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, sorted({'pydantic', 'matplotlib', 'tempfile'} & {*sys.modules}))"
    )
    path = str(tiny_path())
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", path, "-c", "512", "-t", "2", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []"
