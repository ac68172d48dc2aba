"""All commands, and their help."""

from __future__ import annotations

import pytest
from commands import Capture, run

import moebind
from moebind.cli.app import COMMANDS

ALL = [*COMMANDS, *(f"bench {name}" for name in ("decode", "prompt", "batch", "offload"))]


@pytest.mark.parametrize("command", ALL)
def test_help_fits_on_a_screen_and_has_an_example(
    command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run(*command.split(), "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert f"  Example: moebind {command} " in "\n".join(lines)


def test_rare_options_are_shown_on_request(capsys: Capture) -> None:
    assert run("plan", "--help") == 0
    assert "--split-mode" not in capsys.readouterr().out
    for arguments in (["plan"], ["chat"], ["cache"], ["serve"]):
        assert run(*arguments, "--help-all") == 0
        said = capsys.readouterr().out
        assert "--split-mode" in said
        assert "Usage: moebind " in said
    assert "--one-at-a-time" in said  # one of its own
    assert run("serve", "--help") == 0
    assert "--one-at-a-time" not in capsys.readouterr().out


def test_all_commands_can_be_asked_for_all_options(capsys: Capture) -> None:
    for command in ("", *ALL):
        assert run(*command.split(), "--help-all") == 0
        said = capsys.readouterr().out
        assert f"Usage: moebind {command}".rstrip() in said
        assert "--help-all" in said
        assert run(*command.split(), "--help") == 0
        assert set(capsys.readouterr().out.split()) <= set(said.split())


def test_version_and_help(capsys: Capture) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"moebind {moebind.__version__}, llama.cpp {moebind.llama_cpp_version}\n"
    assert run("--help") == 0
    said = capsys.readouterr().out
    assert "..." not in said.partition("Commands:")[2]  # no summary is cut
    for command in COMMANDS:
        assert f"\n  {command} " in said
        assert run(command, "--help") == 0
        assert f"Usage: moebind {command}" in capsys.readouterr().out
