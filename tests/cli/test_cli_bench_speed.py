"""moebind bench decode, prompt and batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run
from hub_server import REPO, Hub

from moebind import Device

MakeTiny = Callable[..., Path]
FAST = ["-ngl", "0", "-t", 1, "-r", 3, "--warmup", 0]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4)


@pytest.mark.parametrize(
    ("kind", "options", "shown"),
    [
        ("decode", ["-p", 8, "-n", 3], ["decode tokens/s", "ms per step"]),
        ("prompt", ["-p", 8], ["prompt tokens/s"]),
        ("batch", ["-p", 8, "-n", 3, "-npl", "1,2"], ["prompt tokens/s", "decode tokens/s"]),
    ],
)
def test_tables(path: Path, kind: str, options: list[object], shown: list[str], capsys: Capture) -> None:
    assert run("bench", kind, path, *FAST, *options, "--no-progress") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert all(each in said.out for each in [*shown, "±", "3 runs"])


@pytest.mark.parametrize("kind", ["decode", "prompt", "batch"])
def test_workers(path: Path, kind: str, device: Device, capsys: Capture) -> None:
    options = ["--rpc", device.description, *FAST[2:], "-p", 4, *(["-n", 2] if kind != "prompt" else [])]
    assert run("bench", kind, path, *options, "--no-progress") == 0
    assert f"It held {device.name} " in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["decode", "prompt", "batch"])
def test_help_fits_on_a_screen_and_has_an_example(kind: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run("bench", kind, "--help") == 0
    said = capsys.readouterr().out
    assert said.count("\n") <= 40
    assert f"  Example: moebind bench {kind} moe.gguf " in said


def test_json_has_every_stamp(path: Path, capsys: Capture) -> None:
    assert run("bench", "batch", path, *FAST, "-p", 8, "-n", 3, "--sequences", "1,2", "--json") == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert [row["n_sequences"] for row in told["rows"]] == [1, 2]
    assert {len(each["stamps"]) for row in told["rows"] for each in row["runs"]} == {4}
    assert told["context_params"]["n_ctx"] == 11
    assert "2 of 2, 2 sequences: run" in said.err


def test_what_the_hub_has(hub: Hub, capsys: Capture) -> None:
    assert run("bench", "prompt", "-hf", f"{REPO}:Q4_K", *FAST, "-p", 8, "--json", "--no-progress") == 0
    assert json.loads(capsys.readouterr().out)["environment"]["file"]["name"] == "tiny-Q4_K.gguf"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["decode", "-r", "2"], 2, "--repeats is 2"),
        (["decode", "-n", "0"], 2, "--n-gen is 0"),
        (["prompt", "-p", "0"], 2, "--n-prompt is 0"),
        (["batch", "-npl", "1,x"], 2, "--sequences is '1,x'"),
        (["batch", "-npl", "0"], 2, "--sequences is 0"),
        (["decode", "-c", "8", "-n", "400"], 1, "--ctx-size"),
        (["decode", "--device", "12GiB"], 2, "--device is '12GiB', which describes a device, and this computes"),
    ],
)
def test_misuse(path: Path, arguments: list[str], status: int, message: str, capsys: Capture) -> None:
    assert run("bench", arguments[0], path, "-ngl", 0, "-t", 1, *arguments[1:], "--no-progress") == status
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1


def test_a_model_that_is_missing(tmp_path: Path, capsys: Capture) -> None:
    assert run("bench", "prompt", tmp_path / "none.gguf", "--no-progress") == 1
    assert "does not exist" in capsys.readouterr().err
