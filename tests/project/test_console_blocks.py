"""What the pages tell a reader to type: commands of moebind's, with options that they have."""

from __future__ import annotations

import re
import shlex
from functools import cache

import pytest
import typer
from pages import PAGES, ROOT

from moebind.cli.app import app

#: A command that is typed, on one line or several.
TYPED = re.compile(r"^(?:\w*\$ )?(moebind (?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)
HELP = {"--help", "--help-all", "--version"}


def lines() -> list[tuple[str, str]]:
    """The pages' names, and the commands in their blocks for consoles."""
    found = []
    for page in PAGES:
        for block in re.findall(
            r"^```(?:console|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            found += [(page.relative_to(ROOT).as_posix(), typed) for typed in TYPED.findall(block)]
    return found


LINES = lines()


@cache
def options(*path: str) -> frozenset[str]:
    """All options of a command, or of a command of a group."""
    command = typer.main.get_command(app)
    for name in path:
        command = command.get_command(typer.Context(command), name)  # type: ignore[attr-defined]
        assert command is not None, name
    return frozenset(name.strip() for each in command.params for name in (*each.opts, *each.secondary_opts))


def test_there_are_commands() -> None:
    assert len(LINES) > 60
    assert "--cpu-moe" in options("plan") and "--cpu-moe" not in options("devices")


@pytest.mark.parametrize(("page", "typed"), LINES, ids=[f"{page}-{n}" for n, (page, _) in enumerate(LINES)])
def test_a_command_has_the_options_that_it_is_given(page: str, typed: str) -> None:
    words = shlex.split(typed.replace("\\\n", " "), comments=True)[1:]
    if "|" in words:
        words = words[: words.index("|")]
    if "--" in words:
        words = words[: words.index("--")]  # the rest is for llama-server
    given = [word for word in words if re.match(r"--?[a-zA-Z]", word)]
    path = words[:2] if words[0] == "bench" else words[:1]
    assert {word.partition("=")[0] for word in given} <= HELP | options(*path), page
