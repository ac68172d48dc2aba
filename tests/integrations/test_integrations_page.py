"""The transcripts of docs/integrations.md, made again."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from transcripts import VARIABLES, transcripts

pytest.importorskip("llm", reason="needs the extra [llm]")
PAGE = [*transcripts("integrations.md")]
WRITTEN = [each for each in PAGE if each[1] and each[0].startswith("llm ")]


def lines(text: str) -> list[str]:
    """The lines of a text that are not empty."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_there_are_transcripts() -> None:
    assert len(WRITTEN) == 4


@pytest.mark.thorough
@pytest.mark.timeout(600)  # seconds, on a machine that has nothing else to do
@pytest.mark.parametrize(("command", "output"), WRITTEN)
def test_transcripts(command: str, output: str, demo_path: Path, tmp_path: Path) -> None:
    for name in ("models", "hub", "llm"):
        (tmp_path / name).mkdir()
    (tmp_path / "models/moe.gguf").symlink_to(demo_path)
    [population] = [shown for each, shown in PAGE if each == "cat population.py"]
    (tmp_path / "population.py").write_text(population, encoding="utf-8")
    folders = {"MOEBIND_MODELS": "models", "HF_HUB_CACHE": "hub", "LLM_USER_PATH": "llm"}
    done = subprocess.run(
        ["bash", "-c", f"{command} -o n_threads 1" if re.search(r"-m moe\b", command) else command],
        cwd=tmp_path,
        env={**VARIABLES, **{name: str(tmp_path / folder) for name, folder in folders.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # where llm tells of tools
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert lines(done.stdout) == lines(output)
