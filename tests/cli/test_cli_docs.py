"""The transcripts of docs/cli.md, made again."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import projectors
import pytest
from hub_server import serving
from transcripts import VARIABLES, like, transcripts
from typist import MOEBIND, typing

MakeTiny = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
PAGE = [*transcripts("cli.md")]
TEXTS = [each for each in PAGE if re.search(r"moebind (generate|chat|probe|embed|rerank|tokenize) ", each[0])]
#: Those of models and measurements, which wrote something there.
FILES = [each for each in PAGE if each[1] and re.search(r"moebind (inspect|list|get|quantize|bench) ", each[0])]
#: Commands that compute nothing.
WITHOUT_THREADS = r"moebind (tokenize|inspect|list|get|devices)\b"
TALKS = [each for each in TEXTS if "\n> " in each[1]]
SILENT = [command for command, output in TEXTS if not output]
WRITTEN = [each for each in TEXTS if each[1] and each not in TALKS]


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


def test_devices(folder: Path) -> None:
    # What this machine has besides, and why not more, is its own.
    [(command, output)] = [each for each in PAGE if each[0] == "moebind devices"]
    said, shown = run(command, folder).splitlines(), output.splitlines()
    assert said[0].split() == shown[0].split()
    [row] = [line for line in said if line.startswith("CPU ")]
    assert row.split()[:3] == shown[1].split()[:3]
    if len(said) == len(shown):  # no device takes layers
        assert said[2] == shown[2]
    state = r"^Backends: .*\.$|^(\w+) is (?:in|out): "
    for theirs, ours in zip(said[-3:], shown[-3:], strict=True):
        assert re.findall(state, theirs) == re.findall(state, ours) != []


def test_routing(folder: Path) -> None:
    [(command, output)] = [each for each in PAGE if each[0].startswith("moebind routing ")]
    said, shown = (re.sub(r"\|.*\|", "|map|", like(text)) for text in (run(command, folder), output))
    assert (folder / "routing.svg").stat().st_size > 1000
    # The page leaves lines out; which experts are busy, the last bit of a number may decide.
    assert re.fullmatch("(.*\\n)*".join(map(re.escape, shown.split("...\n"))), said), said
