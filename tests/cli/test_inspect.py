"""moebind inspect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run
from hub_server import Hub

import moebind

MakeTiny = Callable[..., Path]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def test_a_card(path: Path, capsys: Capture) -> None:
    assert run("inspect", path) == 0
    assert capsys.readouterr().out == f"{moebind.inspect(path)}\n"


def test_tensors(path: Path, capsys: Capture) -> None:
    assert run("inspect", path, "--tensors") == 0
    lines = capsys.readouterr().out.splitlines()
    (at,) = [at for at, line in enumerate(lines) if line.split() == ["tensor", "shape", "type", "bytes"]]
    assert [line.split()[0] for line in lines[at + 1 :]] == list(moebind.inspect(path).tensors)


def test_json(path: Path, capsys: Capture) -> None:
    assert run("inspect", path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["expert_layers"] == {"0": 4, "1": 4, "2": 4}
    assert "tensors" not in told
    assert run("inspect", path, "--json", "--tensors") == 0
    assert json.loads(capsys.readouterr().out)["tensors"][0]["type"] == "F32"


def test_the_template_whole(demo_path: Path, path: Path, capsys: Capture) -> None:
    assert run("inspect", demo_path, "--template") == 0
    assert capsys.readouterr().out == f"{moebind.inspect(demo_path).chat_template}\n"
    assert run("inspect", path, "--template") == 2
    assert "has no chat template" in capsys.readouterr().err


def test_on_the_hub(hub: Hub, capsys: Capture) -> None:
    assert run("inspect", "hf://someone/tiny/F32") == 0
    assert "nothing was downloaded" in capsys.readouterr().out


def test_failures(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"junk")
    for arguments in ([tmp_path / "none.gguf"], [tmp_path / "junk.gguf"], [tmp_path]):
        assert run("inspect", *arguments) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert run("inspect") == 2
