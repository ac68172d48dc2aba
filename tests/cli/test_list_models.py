"""moebind list."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from commands import Capture, run
from hub_server import Hub

MakeTiny = Callable[..., Path]


@pytest.fixture
def folder(tiny_path: MakeTiny, tmp_path: Path) -> Path:
    top = tmp_path / "models"
    top.mkdir()
    (top / "moe.gguf").symlink_to(tiny_path(n_expert=4, n_layer=3))
    (top / "junk.gguf").write_bytes(b"junk, not a model")
    return top


def test_a_table(folder: Path, capsys: Capture) -> None:
    assert run("list", folder, "--device", "1GiB", "--host", "8GiB") == 0
    said = capsys.readouterr()
    assert "junk.gguf is not a GGUF file" in said.out
    assert said.out.splitlines()[-1].startswith("moe.gguf")
    assert "all on GPU0" in said.out
    assert said.err == ""


def test_what_a_command_takes_is_called_by_its_name(tmp_path: Path, capsys: Capture) -> None:
    tiny.write(tmp_path / "words.gguf", tiny.Shape(), without="")
    assert run("list", tmp_path) == 0
    said = capsys.readouterr().out
    assert "has no weights, only a vocabulary: moebind tokenize takes that" in said


def test_json_and_budgets(folder: Path, capsys: Capture) -> None:
    budgets = ["--memory", "GPU0=20MiB", "--margin", "1MiB", "-c", 256]
    assert run("list", folder, "--device", "1GiB", "--host", "8GiB", *budgets, "--json") == 0
    junk, moe = json.loads(capsys.readouterr().out)["models"]
    assert "not a GGUF file" in junk["problem"]
    assert (moe["fits"], moe["n_ctx"]) == (True, 256)
    assert run("list", folder, "--no-fit", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"][1]["fit"] is None


def test_nothing_there(hub: Hub, tmp_path: Path, capsys: Capture) -> None:
    assert run("list") == 0
    assert "no GGUF file in the Hub's cache" in capsys.readouterr().out
    assert run("list", tmp_path) == 0
    assert str(tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["list"], ["get", "a/b:Q4_K"], ["inspect", "hf://a/b/c.gguf"]])
def test_the_hub_needs_an_extra(arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run(*arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "moebind: the Hugging Face Hub is reached through huggingface_hub: pip install 'moebind[hub]'\n"
    )


def test_misuse(folder: Path, capsys: Capture) -> None:
    for arguments, status in (
        ([folder / "none"], 1),
        ([folder, "--memory", "much"], 2),
        ([folder, "--device", "nope"], 2),
        ([folder, "--memory", "CUDA9=1GiB", "--device", "1GiB"], 2),
    ):
        assert run("list", *arguments) == status
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
