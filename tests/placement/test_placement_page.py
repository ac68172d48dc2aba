"""The commands of docs/placement.md, run again, and what they wrote."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from transcripts import VARIABLES, transcripts

ROOT = Path(__file__).resolve().parents[2]
PAGE = [*transcripts("placement.md")]
#: With the demo model.
SILENT = [command for command, output in PAGE if not output and re.match(r"moebind (plan|fit) ", command)]
#: Of the header of a large model, which takes no time either.
WRITTEN = [each for each in PAGE if each[1]]


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=VARIABLES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_commands() -> None:
    assert len(SILENT) == 3
    assert len(WRITTEN) == 1


@pytest.mark.parametrize("command", SILENT)
def test_commands(command: str, demo_path: Path, tmp_path: Path) -> None:
    (tmp_path / "moe.gguf").symlink_to(demo_path)
    assert run(command, tmp_path)
    assert (tmp_path / "fit.json").exists() == ("--save fit.json" in command)


@pytest.mark.parametrize(("command", "output"), WRITTEN)
def test_a_large_model(command: str, output: str, tmp_path: Path) -> None:
    [made] = [each for each, _ in PAGE if each.startswith("python benchmarks/shapes.py ")]
    run(made.replace("benchmarks/", f"{ROOT}/benchmarks/"), tmp_path)
    said = run(command, tmp_path)
    assert said.startswith(output)
    left_out = said.removeprefix(output).splitlines()
    assert [line.partition(":")[0] for line in left_out] == [
        "Options of moebind bench",
        "Options of moebind generate, chat and serve",
    ]
    assert "Two more lines, left out here, have the options of the other commands." in (
        ROOT / "docs/placement.md"
    ).read_text(encoding="utf-8")
