"""The transcripts of docs/serving.md, made again."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import PATIENCE
from transcripts import VARIABLES, like, transcripts

from moebind.server.process import has_page

MakeTiny = Callable[..., Path]
WRITTEN = [each for each in transcripts("serving.md") if each[1]]
SERVING = [each for each in WRITTEN if each[1].startswith("http://")]
REFUSED = [each for each in WRITTEN if each not in SERVING]


@pytest.fixture
def folder(demo_path: Path, tiny_path: MakeTiny, tmp_path: Path) -> Path:
    for name, file in (("moe.gguf", demo_path), ("models/moe.gguf", demo_path), ("more/small.gguf", tiny_path())):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(file)
    (tmp_path / "models" / "broken.gguf").write_text("not a model")
    return tmp_path


def test_there_are_transcripts() -> None:
    assert len(SERVING) > 1
    assert len(REFUSED) > 1


@pytest.mark.parametrize(("command", "output"), SERVING, ids=[command for command, _ in SERVING])
def test_what_is_served(command: str, output: str, folder: Path) -> None:
    quick = f"exec {elsewhere(command)} -t 1"
    shown = [line for line in output.splitlines() if has_page() or not line.startswith("Chat in a browser")]
    with subprocess.Popen(
        ["bash", "-c", quick], cwd=folder, env=VARIABLES, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            said = [process.stdout.readline() for _ in shown]
            assert said[0], process.stderr.read()
            process.terminate()
            assert process.wait(PATIENCE) == 0
            told, notes = process.stdout.read(), process.stderr.read()
        finally:
            process.kill()
    assert told == ""
    assert units(like("".join(said))) == units(like("".join(f"{line}\n" for line in shown)))
    assert notes.count("\n") == command.count("--cpu-moe")  # which does nothing without a device


def elsewhere(command: str) -> str:
    """The command with a port that is free: the page's may be somebody else's here."""
    if "--bind" in command:
        return command.replace("127.0.0.1:11435", "127.0.0.1:0")
    return command.replace("moebind serve", "moebind serve --port 0")


def units(text: str) -> str:
    """Whichever folder a path is in, and whatever a size is told in."""
    return re.sub(r"\S*(?=models/broken)|\.{1,2}/", "", re.sub(r"[KMG]iB", "B", text))


@pytest.mark.parametrize(("command", "output"), REFUSED, ids=[command for command, _ in REFUSED])
def test_what_is_refused(command: str, output: str, folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", elsewhere(command)], cwd=folder, env=VARIABLES, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", output)
