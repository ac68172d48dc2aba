"""What the pages tell a reader to type: commands, programs and chores that there are, with options that they have.

test_console_runs.py runs what can be run; this looks at all of it.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
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


# --- programs of the checkout, in blocks and in sentences ---

TEXTS = {
    page.relative_to(ROOT).as_posix(): re.sub(r"\\\n *", "", page.read_text(encoding="utf-8"))
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
}
FOLDERS = "(?:benchmarks|examples|tests|tools|vendor)/"
#: Programs that have commands of their own, which have the options.
COMMANDS = ("tools/wheels", "tests/soak/soak.py")


def programs() -> dict[str, set[str]]:
    """Programs, with the command of those that have some, and all options that some page gives them."""
    found: dict[str, set[str]] = {}
    for text in TEXTS.values():
        for line in re.findall(rf"\bpython ({FOLDERS}[^`\n#|]*)", text):
            # One may be told to run another one, which takes what follows.
            own = line.partition(" -m ")[0]
            for program, rest in re.findall(rf"(?<!\S)({FOLDERS}[\w/-]+(?:\.py)?)((?: (?!{FOLDERS})[^\s)]+)*)", own):
                words = rest.split()
                name = f"{program} {words[0]}" if program in COMMANDS else program
                given = {option[0] for word in words if (option := re.match(r"--?[a-z][\w-]*", word))}
                found.setdefault(name, set()).update(given)
    return found


NAMED = programs()


@pytest.mark.parametrize("name", [name for name, given in NAMED.items() if given])
def test_a_program_has_the_options_that_it_is_given(name: str) -> None:
    program, *command = name.split()
    done = subprocess.run(
        [sys.executable, ROOT / program, *command, "--help"], capture_output=True, text=True, check=False
    )
    # Some import packages first that only they take.
    said = done.stdout if done.returncode == 0 else (ROOT / program).read_text(encoding="utf-8")
    assert done.returncode == 0 or "ModuleNotFoundError" in done.stderr, done.stderr
    for option in NAMED[name] - {"--help"}:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", said), (name, option)


def test_programs_are_there() -> None:
    assert len(NAMED) > 40
    assert [name for name in NAMED if not (ROOT / name.split()[0]).exists()] == []


def test_chores_and_extras_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = "\n".join(TEXTS.values())
    chores = set(
        re.findall(r"(?:^|`|^\$ |^\S+=\S+ |\$ \S+=\S+ )make ([a-z][a-z-]*)((?: [A-Z]+=\S+)*)", text, re.MULTILINE)
    )
    assert len({name for name, _ in chores}) > 8
    for name, variables in chores - {("one", "")}:  # "make one" is a sentence's
        assert re.search(rf"^{name}: ", makefile, re.MULTILINE), name
        for variable in re.findall(r"([A-Z]+)=", variables):
            assert f"$({variable})" in makefile, (name, variable)
    extras = {
        extra for listed in re.findall(r"(?:\.|moebind)\[([a-z][a-z\d,-]+)\]", text) for extra in listed.split(",")
    }
    assert len(extras) > 8
    declared = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert extras <= set(re.findall(r"^([\w-]+) = \[", declared, re.MULTILINE))


def test_what_is_shown_and_not_compared_where_it_stands_is_compared_elsewhere() -> None:
    """conftest.py compares the other blocks of text with what the Python block before them printed."""
    skipped = {name: text.count("<!--- skip: next -->\n```text\n") for name, text in TEXTS.items()}
    assert {name: count for name, count in skipped.items() if count} == {
        "README.md": 1,  # tests/project/test_examples.py
        "docs/build.md": 3,  # test_docs.py
        "docs/doctor.md": 1,  # tests/diagnosis/test_diagnosis.py
        "docs/offload.md": 1,  # a drawing
    }
