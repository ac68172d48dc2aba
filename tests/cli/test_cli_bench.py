"""moebind bench."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

from moebind.bench import OffloadReport

MakeTiny = Callable[..., Path]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def test_bench(path: Path, capsys: Capture, tmp_path: Path) -> None:
    short = ["-p", 16, "-n", 2, "--warmup", 0, "-t", 1, "--n-ctx", 256, "--device", "loopback", "--prompt", "it is"]
    options = [*short, "--placement", "all", "--placement", "cpu-moe", "--output", tmp_path, "--no-progress"]
    assert run("bench", "offload", path, *options, "--json", "--plot", tmp_path / "plot.png") == 0
    told = json.loads(capsys.readouterr().out)
    assert OffloadReport.load(tmp_path).to_dict() == told
    assert [row["name"] for row in told["rows"]] == ["all on the device", "experts in host memory"]
    assert told["settings"]["n_prompt"] == 16
    assert told["settings"]["context_params"]["n_threads"] == 1
    assert (tmp_path / "plot.png").stat().st_size
    # All of it is there already; one more placement fails, and only that one.
    assert run("bench", "offload", path, *options, "--placement", "ot=nothing=CPU", "--markdown") == 1
    said = capsys.readouterr().out
    assert "| experts in host memory |" in said
    assert "failed: ModelLoadError" in said


def test_bench_on_a_pipe_says_which_placement_is_finished(path: Path, capsys: Capture, tmp_path: Path) -> None:
    short = ["-p", 16, "-n", 2, "--warmup", 0, "-t", 1, "--n-ctx", 256, "--device", "loopback", "--prompt", "it is"]
    options = [*short, "--placement", "all", "--placement", "ot=nothing=CPU", "--output", tmp_path / "out.json"]
    assert run("bench", "offload", path, *options) == 1
    said = capsys.readouterr().err.splitlines()
    first, second = "1 of 2, all on the device: ", "2 of 2, nothing on CPU: "
    assert said[:3] == [f"{first}loading", f"{first}run 1 of 3", f"{first}comparing 1 of 1"]
    assert said[3].startswith(f"{first}prompt ")
    assert said[3].endswith(" tokens/s")
    assert said[4] == f"{second}loading"
    assert said[5].startswith(f"{second}failed: ModelLoadError: ")
    assert run("bench", "offload", path, *options) == 1
    assert capsys.readouterr().err.splitlines()[0].endswith("tokens/s, measured before")
    assert run("bench", "offload", path, *options, "--no-progress") == 1
    assert capsys.readouterr().err == ""
