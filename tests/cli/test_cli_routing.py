"""moebind routing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

from moebind import RoutingRecorder

MakeTiny = Callable[..., Path]
FAST = ["-ngl", "0", "-t", 1, "-c", 256]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=8, n_layer=3)


def test_a_heat_map_and_a_curve(path: Path, capsys: Capture) -> None:
    assert run("routing", path, *FAST, "-p", "it is", "-n", 8) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "one expert; 8 in all" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "2"]
    assert "24 experts in 3 layers" in lines[6]
    assert lines[-1].startswith("The experts of one token take")


def test_json(path: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "text.txt"
    file.write_text("the cat is on the mat", encoding="utf-8")
    assert run("routing", path, *FAST, "-f", file, "-n", 7, "--json", "--save", tmp_path / "r.npz") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["n_tokens"] == [7, 7, 7]
    assert [sum(layer) for layer in told["counts"]] == [14, 14, 14]  # two experts work on a token
    assert told["cache"]["n_tokens"] == 7
    assert told["path"] == str(path)
    assert RoutingRecorder.load(tmp_path / "r.npz").counts.tolist() == told["counts"]


def test_pictures(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures = [tmp_path / "heat.png", tmp_path / "curve.svg"]
    assert run("routing", path, *FAST, "-n", 5, "--plot", pictures[0], "--plot-cache", pictures[1]) == 0
    assert all(picture.stat().st_size > 1000 for picture in pictures)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-p", "a", "-f", "b"], 2, "--prompt and --file are both given"),
        (["-n", "0"], 2, "--predict"),
        (["-f", "nowhere.txt"], 1, "nowhere.txt"),
        (["--plot", "heat.xyz"], 2, "--plot is 'heat.xyz'"),
        (["--plot-cache", "curve.xyz"], 2, "--plot-cache is 'curve.xyz'"),
        (["--device", "12GiB"], 2, "--device is '12GiB', which describes a device, and this computes"),
    ],
)
def test_misuse(path: Path, arguments: list[str], status: int, message: str, capsys: Capture) -> None:
    assert run("routing", path, *FAST, *arguments) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1


def test_dense_models(tiny_path: MakeTiny, capsys: Capture) -> None:
    assert run("routing", tiny_path(), *FAST, "-n", 3) == 2
    assert "no experts" in capsys.readouterr().err
