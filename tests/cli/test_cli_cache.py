"""``moebind cache``: the forecast of a cache of experts on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run

MakeTiny = Callable[..., Path]
FAST = ["-ngl", "0", "-t", 1, "-c", 256]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=8, n_layer=3)


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert run("cache", *arguments, *FAST, "--json") == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_table(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cache", path, *FAST, "-n", 20) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("tokens, 24 experts in 3 layers")
    assert lines[1].split() == ["cache", "experts", "hit", "rate", "uploaded", "per", "token", "best", "static"]
    assert lines[-1].startswith("The experts of one token take")


def test_a_prompt(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, path, "-p", "it is", "-n", 12, "--size", "500KiB", "--size", "1MiB")
    assert [point["size"] for point in found["points"]] == [500 * 1024, 2**20]  # type: ignore[attr-defined]
    assert found["path"] == str(path)


def test_a_text(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text.txt"
    file.write_text("the cat is on the mat and it is a cat", encoding="utf-8")
    assert told(capsys, path, "-f", file, "-n", 7)["n_tokens"] == 7
    whole = told(capsys, path, "-f", file, "-n", 200)["n_tokens"]
    assert isinstance(whole, int)
    assert 7 < whole < 60


def test_a_picture(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run("cache", path, *FAST, "-n", 5, "--plot", tmp_path / "curve.png") == 0
    assert (tmp_path / "curve.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-p", "a", "-f", "b"], 2, "--prompt and --file are both given"),
        (["--size", "much"], 2, "--size is 'much'"),
        (["-n", "0"], 2, "--predict"),
        (["--device", "12GiB"], 2, "--device is '12GiB', which describes a device, and this computes"),
        (["-f", "nowhere.txt"], 1, "nowhere.txt"),
        (["--plot", "curve.xyz"], 2, "ends in one of"),
    ],
)
def test_misuse(
    path: Path, arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("cache", path, *FAST, *arguments) == status
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_dense_models(tiny_path: MakeTiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cache", tiny_path(), *FAST, "-n", 3) == 2
    assert "no experts" in capsys.readouterr().err
