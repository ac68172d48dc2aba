"""The words of a command line: options of several letters behind one dash, and values."""

from __future__ import annotations

import re

import pytest
import typer
from commands import Capture, run

from moebind.cli.app import COMMANDS, app
from moebind.cli.words import WrongOptionError, names_of, read_words

MADE = typer.main.get_command(app)


def read(command: str, *words: str) -> list[str]:
    params = MADE.get_command(typer.Context(MADE), command).params  # type: ignore[attr-defined]
    return read_words(words, params, command, lambda name: f"no {name}")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["m.gguf", "a text", "-n", "16"],
        ["m.gguf", "-n", "-1", "-p", "-no-cnv"],  # a value may look like anything
        ["m.gguf", "-ngl", "all", "-fa", "on", "-ot", "-x=CPU", "-cmoe", "-ncmoe", "3"],
        ["m.gguf", "-c4096", "-n-1", "-t2"],
        ["m.gguf", "--temp=1", "-ngl=3", "--nonsense", "--no_such=1", "-f", "-"],
        ["m.gguf", "--", "-no-cnv", "-zzz"],
    ],
)
def test_what_typer_reads_rightly_is_left(words: list[str]) -> None:
    expected = ["m.gguf", "--temp=1", "-ngl", "3", *words[3:]] if "-ngl=3" in words else words
    assert read("generate", *words) == expected


def test_options_that_change_nothing_are_left_out() -> None:
    assert read("generate", "m.gguf", "-no-cnv", "a", "--no-warmup", "--jinja") == ["m.gguf", "a"]
    assert read("generate", "-p", "--jinja", "--", "-no-cnv") == ["-p", "--jinja", "--", "-no-cnv"]
    assert read("chat", "-cnv", "m.gguf") == ["m.gguf"]
    assert read("plan", "--jinja") == ["--jinja"]  # which has no templates, and typer says so


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-cnv"], "no -cnv"),
        (["m.gguf", "-nglx"], "no -nglx"),
        (["-ngl99"], "no -ngl99"),
        (["-np4"], "no -np4"),
        (["-fast=1"], "no -fast"),
        (["-ptext"], "no -ptext"),
        (["-\x1b"], "no -\x1b"),
        (["-z"], "no -z"),
        (["-cmoe=1"], "-cmoe has a value, and takes none"),
    ],
)
def test_what_is_none_of_its_options_is_told_whole(words: list[str], told: str) -> None:
    with pytest.raises(WrongOptionError, match=f"^{re.escape(told)}$"):
        read("generate", *words)


def test_a_value_behind_a_sign(capsys: Capture) -> None:
    assert read("generate", "-n=16", "-p=a=b") == ["-n", "16", "-p", "a=b"]
    assert run("generate", "none.gguf", "a", "-n=x") == 2
    assert "--predict is 'x'; it takes a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [*COMMANDS, *(f"bench {name}" for name in ("decode", "prompt", "batch", "offload"))]
)
def test_no_command_reads_several_letters_as_one_and_a_value(command: str, capsys: Capture) -> None:
    """Of each of its options of one letter, one that goes on is none."""
    made = MADE
    for name in command.split():
        made = made.get_command(typer.Context(made), name)  # type: ignore[attr-defined]
    letters = {name for each in made.params for name in names_of(each) if re.fullmatch(r"-[a-z]", name)}
    for each in letters:
        assert run(*command.split(), f"{each}zzz") == 2
        assert f"there is no option {each}zzz" in capsys.readouterr().err


def test_a_shell_completes_what_is_not_whole() -> None:
    command = MADE.get_command(typer.Context(MADE), "generate")  # type: ignore[attr-defined]
    context = command.make_context("generate", ["m.gguf", "-no"], resilient_parsing=True)
    assert context.params["model"] == "m.gguf"
