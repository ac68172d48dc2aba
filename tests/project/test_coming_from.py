"""The pages for those who come from other programs: what they say is called so here is called so."""

from __future__ import annotations

import inspect
import re

import pytest
import typer
from pages import DOCS, ROOT

import moebind
from moebind import Context
from moebind.cli.app import COMMANDS, app

PAGES = ("from_llama_cpp.md", "from_ollama.md", "from_transformers.md")
#: What stands between backquotes in their tables.
CODE = [
    text
    for page in PAGES
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines()
    if line.startswith("| ")
    for text in re.findall(r"`([^`]+)`", line)
]
EXPRESSIONS = sorted({text for text in CODE if re.match(r"(Model|Context)Params\(", text)})
ARGUMENTS = sorted(
    {
        (method, argument)
        for text in CODE
        for method, inside in re.findall(r"context\.(generate|generate_many)\((.*)\)", text)
        for argument in re.findall(r"\b(\w+)=", inside)
    }
)
FLAGS = sorted(
    set(
        re.findall(
            r"^\| [^|`]+ \| `(-[\w-]+)[^`]*` \|", (DOCS / "from_llama_cpp.md").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
)


def options(command: str) -> set[str]:
    """All options of a command."""
    group = typer.main.get_command(app)
    found = group.get_command(typer.Context(group), command)  # type: ignore[attr-defined]
    return {name for each in found.params for name in (*each.opts, *each.secondary_opts)}


def test_the_pages_have_tables() -> None:
    assert len(EXPRESSIONS) > 15
    assert len(ARGUMENTS) > 8
    assert len(FLAGS) > 20


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_parameters_are_what_they_say(text: str) -> None:
    made = eval(text, {name: getattr(moebind, name) for name in moebind.__all__})  # noqa: S307  # our own pages
    default = type(made)()
    assert made != default or text == "ContextParams(swa_full=True)"  # which is the default


@pytest.mark.parametrize(("method", "argument"), ARGUMENTS)
def test_arguments_are_there(method: str, argument: str) -> None:
    assert argument in inspect.signature(getattr(Context, method)).parameters


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_are_those_of_both(flag: str) -> None:
    assert flag in options("generate")
    theirs = (ROOT / "vendor/llama.cpp/common/arg.cpp").read_text(encoding="utf-8")
    assert f'"{flag}"' in theirs


def test_commands_are_there() -> None:
    named = {name for text in CODE for name in re.findall(r"^moebind ([\w-]+)", text)}
    assert len(named) > 8
    assert named <= set(COMMANDS)
    for text in CODE:
        if found := re.match(r"moebind (chat|generate|serve|plan)\b(.*)", text):
            given = re.findall(r"(?<!\S)--?[a-z][\w-]*", found[2])
            assert set(given) <= options(found[1]), text
