"""The transcripts of docs/cli.md, made again."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import serving
from typist import MOEBIND, typing

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
#: What one core computes is in the page; spinning threads would slow down whoever else is here.
VARIABLES = {**os.environ, "PATH": f"{MOEBIND.parent}:{os.environ['PATH']}", "OMP_WAIT_POLICY": "passive"}


def transcripts() -> Iterator[tuple[str, str]]:
    """Each command of the page that is followed by what it wrote, and that."""
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if output:
                yield command, output


def like(text: str) -> str:
    """A text without its numbers, which are another machine's, and how they are aligned."""
    plain = re.sub(r"\x1b\[\d+m|\r", "", text)
    return re.sub(r" +", " ", re.sub(r"\d+(\.\d+)?", "N", plain))


#: Commands that compute nothing.
WITHOUT_THREADS = {"tokenize", "inspect", "list", "get"}


@pytest.fixture
def folder(demo_path: Path, tmp_path: Path) -> Path:
    (tmp_path / "moe.gguf").symlink_to(demo_path)
    return tmp_path


@pytest.mark.parametrize(("command", "output"), [each for each in transcripts() if "\n> " not in each[1]])
def test_transcripts(command: str, output: str, folder: Path) -> None:
    name = re.findall(r"moebind (\S+)", command)[0]
    quick = command if name in WITHOUT_THREADS else f"{command} -t 1"
    with serving({"someone/demo-moe-GGUF": {"demo-moe-Q4_1.gguf": (folder / "moe.gguf").resolve()}}) as hub:
        variables = {**VARIABLES, "HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(folder / "cache")}
        done = subprocess.run(
            ["bash", "-c", quick], cwd=folder, env=variables, capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert like(done.stdout) == like(output)


@pytest.mark.parametrize(("command", "output"), [each for each in transcripts() if "\n> " in each[1]])
def test_conversations(command: str, output: str, folder: Path) -> None:
    with typing("bash", "-c", f"cd {folder}; PATH={MOEBIND.parent}:$PATH exec {command} -t 1") as typist:
        seen = ""
        for line in re.findall(r"^> (.*)$", output, re.MULTILINE):
            seen += typist.wait_for("> ")
            typist.type(f"{line}\n")
            seen += typist.wait_for(f"{line}\r\n")
        typist.ends_with(0)
    assert like(seen) == like(output)
