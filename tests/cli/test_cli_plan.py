"""moebind plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

import moebind
from moebind import ContextParams, GgmlType, ModelParams

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
