"""All commands, and their help."""

from __future__ import annotations

from commands import Capture, run

import moebind


def test_version_and_help(capsys: Capture) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"moebind {moebind.__version__}, llama.cpp {moebind.llama_cpp_version}\n"
    assert run("--help") == 0
    said = capsys.readouterr().out
    for command in ("plan", "fit", "experts", "doctor", "rpc-worker", "bench"):
        assert f"\n  {command} " in said
        assert run(command, "--help") == 0
        assert f"Usage: moebind {command}" in capsys.readouterr().out
