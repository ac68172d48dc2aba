"""The transcripts of docs/cli.md, made again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import projectors
import pytest
from hub_server import serving
from typist import MOEBIND, typing

MakeTiny = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cli.md"
#: What one core computes is in the page; spinning threads would slow down whoever else is here.
VARIABLES = {
    **os.environ,
    "PATH": f"{MOEBIND.parent}:{os.environ['PATH']}",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_WAIT_POLICY": "passive",
}


def transcripts() -> Iterator[tuple[str, str]]:
    """Each command of the page, and what it wrote there."""
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


TEXTS = [each for each in transcripts() if re.search(r"moebind (generate|chat|probe|embed|rerank|tokenize) ", each[0])]
#: Those of models and measurements, which wrote something there.
FILES = [
    each for each in transcripts() if each[1] and re.search(r"moebind (inspect|list|get|quantize|bench) ", each[0])
]
#: Commands that compute nothing.
WITHOUT_THREADS = r"moebind (tokenize|inspect|list|get) "
TALKS = [each for each in TEXTS if "\n> " in each[1]]
SILENT = [command for command, output in TEXTS if not output]
WRITTEN = [each for each in TEXTS if each[1] and each not in TALKS]


def like(text: str) -> str:
    """A text without its numbers, which are another machine's, how they are aligned, and what its host has them in."""
    plain = re.sub(r"\x1b\[\d+m|\r|^  CPU.*\n| to CPU.*", "", text, flags=re.MULTILINE)
    return re.sub(r" +", " ", re.sub(r"\d+(\.\d+)?", "N", plain))


@pytest.fixture
def folder(demo_path: Path, tiny_path: MakeTiny, tmp_path: Path) -> Path:
    (tmp_path / "moe.gguf").symlink_to(demo_path)
    (tmp_path / "texts.txt").write_text("a cat\na dog\n", encoding="utf-8")
    (tmp_path / "reranker.gguf").symlink_to(tiny_path(arch="bert", n_head_kv=4, n_ctx_train=64, n_cls_out=1))
    dense = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo_model.py", "--dense"], capture_output=True, text=True, check=True
    )
    (tmp_path / "draft.gguf").symlink_to(dense.stdout.strip())
    projectors.put_seeing_model(tmp_path)
    return tmp_path


def run(command: str, folder: Path, **variables: str) -> str:
    quick = command if re.search(WITHOUT_THREADS, command) else f"{command} -t 1"
    done = subprocess.run(
        ["bash", "-c", quick],
        cwd=folder,
        env={**VARIABLES, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("command", "output"), WRITTEN)
def test_transcripts(command: str, output: str, folder: Path) -> None:
    assert like(run(command, folder)) == like(output)


@pytest.mark.parametrize(("command", "output"), FILES)
def test_models_and_measurements(command: str, output: str, folder: Path) -> None:
    for path in folder.glob("*.gguf"):
        if path.name != "moe.gguf":
            path.unlink()  # it would be listed
    with serving({"someone/demo-moe-GGUF": {"demo-moe-Q4_1.gguf": (folder / "moe.gguf").resolve()}}) as hub:
        said = run(command, folder, HF_ENDPOINT=hub.endpoint, HF_HUB_CACHE=str(folder / "cache"))
    assert like(said) == like(output)


@pytest.mark.parametrize("command", SILENT)
def test_commands(command: str, folder: Path) -> None:
    run(command, folder)


@pytest.mark.parametrize(("command", "output"), TALKS)
def test_conversations(command: str, output: str, folder: Path) -> None:
    with typing("bash", "-c", f"cd {folder}; PATH={MOEBIND.parent}:$PATH exec {command} -t 1") as typist:
        seen = ""
        for line in re.findall(r"^> (.*)$", output, re.MULTILINE):
            seen += typist.wait_for("> ")
            typist.type(f"{line}\n")
            seen += typist.wait_for(f"{line}\r\n")
        typist.ends_with(0)
    assert like(seen) == like(output)
