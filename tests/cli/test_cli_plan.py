"""moebind plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

import moebind
from moebind import ContextParams, Device, GgmlType, ModelParams
from moebind.cli import plan as command

MakeTiny = Callable[..., Path]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def test_plan(tiny_path: MakeTiny, capsys: Capture, tmp_path: Path) -> None:
    path = tiny_path(n_expert=4, n_layer=3, n_head=2, n_head_kv=1)  # heads that whole blocks of Q8_0 go into
    options = ["--device", "1GiB", "--n-cpu-moe", 2, "-c", 512, "-ub", 64, "-ctk", "q8_0", "-ctv", "Q8_0", "-fa", "on"]
    assert run("plan", path, *options, "--json", "--plot", tmp_path / "plan.svg") == 0
    params = ContextParams(
        n_ctx=512,
        n_ubatch=64,
        type_k=GgmlType.Q8_0,
        type_v=GgmlType.Q8_0,
        flash_attn_type=1,  # type: ignore[arg-type]
    )
    expected = moebind.plan(path, ModelParams().with_n_cpu_moe(2), params, devices=["1GiB"])
    told = json.loads(capsys.readouterr().out)
    for device in (each for plan in (told, expected.to_dict()) for each in plan["devices"]):
        del device["free"]  # changes all the time
    assert told == {**expected.to_dict(), "devices": told["devices"]}
    assert (tmp_path / "plan.svg").stat().st_size
    assert run("plan", path, "--device", "1GiB", "--cpu-moe", "--n-ctx", "0") == 0
    assert "n_ctx 512," in capsys.readouterr().out


NO_GPU = (
    "No GPU was found: everything is in host memory. --device 24GiB plans for a card of that size all the same; "
    "moebind doctor says why there is none.\n"
)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], True),
        (["--host", "64GiB"], True),
        (["--device", "1GiB"], False),
        (["--device", "none"], False),
        (["-ngl", "0"], False),
        (["--json"], False),
    ],
)
def test_without_a_gpu_it_says_so(
    path: Path, options: list[str], told: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "default_devices", list)
    assert run("plan", path, *options) == 0
    said = capsys.readouterr()
    assert said.out.startswith(NO_GPU) is told
    assert ("No GPU" in said.out + said.err) is told
    assert "--json" in options or said.out.endswith("It fits.\n")


def test_with_a_device_nothing_is_said_of_none(path: Path, device: Device, capsys: Capture) -> None:
    assert run("plan", path, "--rpc", device.description) == 0
    said = capsys.readouterr().out
    assert device.name in said
    assert "No GPU" not in said


def test_check_is_a_question_about_the_plan(path: Path, capsys: Capture) -> None:
    for options, status in ((["--device", "1GiB"], 0), (["--device", "1MiB", "-c", 2**15], 1)):
        assert run("plan", path, *options) == 0  # it answered what was asked
        said = capsys.readouterr().out
        assert run("plan", path, *options, "--check") == status
        assert "It does not fit." in capsys.readouterr().out or status == 0
        assert ("It fits." in said) is (status == 0)


def test_the_length_of_a_context_that_nobody_gave(path: Path, capsys: Capture) -> None:
    """The command's default is not Python's: both say so."""
    assert run("plan", path, "--device", "1GiB", "--json") == 0
    assert json.loads(capsys.readouterr().out)["n_ctx"] == 4096
    assert moebind.plan(path, devices=["1GiB"]).n_ctx == ContextParams().n_ctx == 512
    assert run("plan", "--help") == 0
    assert "4096; in Python, 512" in " ".join(capsys.readouterr().out.split())
    said = " ".join(str(moebind.plan.__doc__).split())
    assert "a context of 512 tokens; ``moebind plan`` on the command line takes 4096" in said
