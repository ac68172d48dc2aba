"""Options of llama.cpp's programs that commands do not have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from commands import Capture, run

from moebind.cli.app import COMMANDS, app
from moebind.cli.drafts import DRAFTS
from moebind.cli.other_programs import COMMANDS_ELSEWHERE, INSTEAD, RENAMED, UNNEEDED, changes_nothing, instead_of
from moebind.cli.refused import REFUSED

SOURCE = Path(__file__).resolve().parents[2] / "vendor" / "llama.cpp" / "common" / "arg.cpp"


def options(command: str) -> set[str]:
    group = typer.main.get_command(app)
    found = group.get_command(typer.Context(group), command)  # type: ignore[attr-defined]
    return {name for each in found.params for name in (*each.opts, *each.secondary_opts)}


def of_llama_cpp(*programs: str) -> dict[str, bool]:
    """The options of these programs, as llama.cpp's source declares them, and whether each has a value."""
    found: dict[str, bool] = {}
    for option in re.split(r"\badd_opt\(common_arg\(", SOURCE.read_text(encoding="utf-8"))[1:]:
        names = re.match(r"(?:\s|//.*\n)*((?:\{\s*\"-[^{}]*\}\s*,\s*)+)(\"[^\"]*\"\s*,\s*\"|string_format|\")?", option)
        assert names is not None, option[:100]
        examples = re.search(r"set_examples\(\{([^}]*)\}", option)
        of = set(re.findall(r"LLAMA_EXAMPLE_(\w+)", examples[1])) if examples else {"COMMON"}
        if of & {"COMMON", *programs}:
            value = (names[2] or "").count('"') > 1
            found |= dict.fromkeys(re.findall(r'"(-[^"]*)"', names[1]), value)
    return found


@pytest.mark.parametrize(("command", "program"), [("generate", "COMPLETION"), ("chat", "CLI")])
def test_what_people_type_for_llama_cpp_is_taken_or_answered(command: str, program: str) -> None:
    known = {*options(command), *INSTEAD, *RENAMED, *REFUSED, *("-h", "--help")}
    known |= {name for name, commands in UNNEEDED.items() if command in commands}
    missing = {name for name in of_llama_cpp(program) if name not in known}
    assert missing - {*options("generate"), *options("chat")} <= {
        *("-bf", "--binary-file", "-dt", "--defrag-thold", "-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"),
        *("-ptc", "--print-token-count", "-o", "--output", "--output-file", "--server-base"),
        *("--control-vector-layer-range", "--video-timestamp-interval", "--video-ffmpeg-dir"),
    }  # which few have a use for


def test_nothing_is_listed_that_llama_cpp_does_not_have() -> None:
    theirs = set(re.findall(r'"(--?[a-z][\w.-]*)"', SOURCE.read_text(encoding="utf-8"), re.IGNORECASE))
    assert set(INSTEAD) | set(UNNEEDED) <= theirs
    assert not set(INSTEAD) & set(REFUSED)
    assert not set(INSTEAD) & {flag for option in DRAFTS for flag in option.flags}


def test_what_changes_nothing_has_no_value_and_is_no_option() -> None:
    values = of_llama_cpp("COMPLETION", "CLI", "SERVER")
    for name, commands in UNNEEDED.items():
        assert not values[name]
        for command in commands:
            assert name not in options(command), command
            assert changes_nothing(name, command)
    assert not changes_nothing("--temp", "generate")


def test_options_and_commands_that_are_named_are_there() -> None:
    for name, instead in INSTEAD.items():
        for command in re.findall(r"\bmoebind ([a-z]+)\b(?!\.)", instead):
            assert command in COMMANDS, name
    assert {name for name in COMMANDS_ELSEWHERE.values() if not name.startswith("--")} <= set(COMMANDS)
    for name in set(RENAMED.values()) - {"--help"}:
        assert any(name.split()[0] in options(command) for command in ("generate", "chat", "tokenize")), name


@pytest.mark.parametrize("name", ["-cnv", "--color", "-co", "--lora", "-r", "--mirostat", "-C", "--no-jinja", "-mli"])
def test_a_sentence_says_what_to_do(name: str, capsys: Capture) -> None:
    assert run("generate", "none.gguf", "a", name, "x") == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"moebind: there is no {name} here: {INSTEAD[name]}\n")
    assert instead_of(name, options("generate")) in said.err  # type: ignore[operator]
    assert instead_of("--nonsense", ()) is None


def test_no_option_is_recommended_that_a_command_lacks(capsys: Capture) -> None:
    assert run("plan", "none.gguf", "-r", "x") == 2
    assert capsys.readouterr().err == (
        "moebind: there is no option -r: moebind plan --help-all shows those that there are\n"
    )


def test_what_is_so_anyway_is_taken(capsys: Capture) -> None:
    for name, commands in UNNEEDED.items():
        for command in commands:
            assert run(command, "none.gguf", "a", name) in {1, 2}
            said = capsys.readouterr().err
            assert name not in said, said


def test_the_page_has_what_changes_nothing() -> None:
    page = (SOURCE.parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^### Options as llama.*?\n((?:\|[^\n]*\n)+)", page, re.MULTILINE | re.DOTALL)
    told: dict[str, set[str]] = {}
    last: set[str] = set()
    for row in table.splitlines()[2:]:
        first, second = row.strip("| ").split(" | ")
        last = set(re.findall(r"`(\w+)`", second)) | (last if "the same" in second else set())
        told |= dict.fromkeys(re.findall(r"`(-[\w-]+)`", first), last)
    assert told == {name: set(commands) for name, commands in UNNEEDED.items()}
