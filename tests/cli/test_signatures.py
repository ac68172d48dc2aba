"""Signatures of commands: numbers that are none are told in moebind's words, in every command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import typer
from commands import Capture, run

from moebind.cli.app import app
from moebind.cli.signatures import WrongNumberError, completed

#: These take words, too.
TEXTS = {"--spec-draft-ngl", "--n-gpu-layers", "--ctx-size", "--ctx-size-min"}


def numbers() -> Iterator[tuple[list[str], str]]:
    """All options of all commands that take a number, by what typer makes of them."""

    def walk(command: Any, words: list[str]) -> Iterator[tuple[list[str], str]]:
        if hasattr(command, "list_commands"):
            for name in command.list_commands(None):
                yield from walk(command.get_command(None, name), [*words, name])
            return
        for each in command.params:
            name = next((flag for flag in each.opts if flag.startswith("--")), "")
            if each.metavar in {"N", "X", "MIB", "SECONDS", "INDEX"} and name not in TEXTS:
                yield words, name

    yield from walk(typer.main.get_command(app), [])


NUMBERS = [*numbers()]


def test_there_are_some() -> None:
    assert len(NUMBERS) > 100
    assert (["rpc-worker"], "--port") in NUMBERS
    assert (["bench", "decode"], "--repeats") in NUMBERS


def test_what_is_no_number_is_told(capsys: Capture) -> None:
    for words, option in NUMBERS:
        assert run(*words, "none.gguf", f"{option}=1x") in {1, 2}, words
        said = capsys.readouterr().err
        assert re.search(rf"^moebind: {option} is '1x'; it takes|^moebind: .*none\.gguf", said), said
        assert "Invalid value" not in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["generate", "m.gguf", "a", "--seed", "abc"], "--seed is 'abc'; it takes a whole number"),
        (["generate", "m.gguf", "a", "-n", "1.5"], "--predict is '1.5'; it takes a whole number"),
        (["generate", "m.gguf", "a", "-n", "-5"], "--predict is -5; it takes -1 or more"),
        (["generate", "m.gguf", "a", "--temp", "warm"], "--temp is 'warm'; it takes a number"),
        (["cache", "m.gguf", "-n", "0"], "--predict is 0; it takes 1 or more"),
        (["rpc-worker", "-p", ""], "--port is ''; it takes a whole number"),
    ],
)
def test_what_is_told(capsys: Capture, arguments: list[str], told: str) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"moebind: {told}\n")


def test_values_that_are_numbers() -> None:
    read: list[object] = []

    @completed
    def command(
        count: Annotated[int, typer.Option("--count", "-c", metavar="N", min=2)] = 3,
        share: Annotated[float | None, typer.Option("--share", metavar="X")] = None,
        name: Annotated[str, typer.Option("--name")] = "1",
    ) -> None:
        read.append((count, share, name))

    holder = typer.Typer(add_completion=False)
    holder.command()(command)
    for arguments in ([], ["-c", "7", "--share", "1e-3", "--name", "7"], ["--count=2"]):
        holder(arguments, standalone_mode=False)
    assert read == [(3, None, "1"), (7, 0.001, "7"), (2, None, "1")]
    with pytest.raises(WrongNumberError, match="--count is 1; it takes 2 or more"):
        holder(["-c", "1"], standalone_mode=False)
