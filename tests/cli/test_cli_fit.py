"""moebind fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

from moebind.backend import host_memory

MakeTiny = Callable[..., Path]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def test_fit(path: Path, capsys: Capture) -> None:
    assert run("fit", path, "--memory", "1600KiB", "--device", "1GiB", "--n-ctx", "256", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"]["devices"][0]["total"] <= 1600 * 1024
    assert told["context_params"]["n_ctx"] == 256
    assert told["model_params"]["tensor_overrides"]
    options = ["--memory", "GPU0=3MiB", "--memory", "Host=1GiB", "--goal", "prompt", "--margin", "1KiB"]
    assert run("fit", path, "--device", "1GiB", *options) == 0
    said = capsys.readouterr().out
    assert "budget" in said
    assert "ModelParams(" in said


def test_the_line_of_options_says_whose(path: Path, capsys: Capture) -> None:
    for given, begins in (
        (["--device", "1GiB"], ["plan and bench: ", "generate, chat and serve: "]),
        (["--device", "none"], ["plan, bench, generate, chat and serve: "]),
        (["--device", "none", "--host", "2GiB"], ["plan: ", "bench, generate, chat and serve: "]),
    ):
        assert run("fit", path, "-c", "1k", "--ctx-size-min", "1k", *given) == 0
        lines = capsys.readouterr().out.splitlines()
        for line, begin in zip(lines[-len(begins) :], begins, strict=True):
            assert line.startswith(f"Options of moebind {begin}")
            assert "-c 1024" in line
            assert ("--host 2GiB" in line) == (begin == "plan: ")
        assert lines[-len(begins) - 1].startswith("In Python: ")


def test_a_machine_without_a_card(path: Path, capsys: Capture) -> None:
    assert run("fit", path, "--memory", "1GiB", "--n-ctx", "256", "-ngl", "0") == 0
    said = capsys.readouterr().out
    if "There is no device besides the processor" in said:
        assert "Cards that are not here can be described, such as with --device 12GiB." in said


def test_fit_says_what_is_missing(path: Path, capsys: Capture) -> None:
    assert run("fit", path, "--memory", "1KiB", "--device", "1GiB", "-ngl", "3") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("moebind: ")
    assert said.err.count("\n") == 1


def test_fit_on_a_host_without_room(
    path: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 67108864 kB\nMemAvailable: 100 kB\n", encoding="utf-8")
    monkeypatch.setattr(host_memory, "PROC", str(tmp_path))
    monkeypatch.setattr(host_memory, "CGROUPS", str(tmp_path / "none"))
    options = ["--device", "1GiB", "--memory", "1600KiB", "-c", 256]
    assert run("fit", path, *options) == 1
    assert "It does not fit.\nThe host lacks" in capsys.readouterr().out
    assert run("fit", path, *options, "--json") == 1
    assert json.loads(capsys.readouterr().out)["plan"]["fits"] is False


def test_a_cache_by_what_was_recorded(demo_path: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "routing.npz"
    assert run("cache", demo_path, "-ngl", "0", "-t", 1, "-c", 256, "-n", 12, "--save", file) == 0
    capsys.readouterr()
    options = ["--device", "1GiB", "--memory", "300MiB", "-c", 512, "--moe-cache", "auto"]
    assert run("fit", demo_path, *options, "--routing", file, "--bus", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["context_params"]["moe_cache_size"] > 0
    assert run("fit", demo_path, *options) == 0
    assert "No cache of experts: what the routers choose was not recorded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--moe-cache", "much"], 2, "--moe-cache is 'much'"),
        (["--moe-cache", "auto", "--routing", "nowhere.npz"], 1, "nowhere.npz"),
        (["--moe-cache", "auto", "--bus", "fast"], 2, "--bus"),
        (["--moe-cache", "auto", "--bus", "-1"], 2, "--bus is -1"),
    ],
)
def test_misuse_of_a_cache(path: Path, capsys: Capture, options: list[str], status: int, message: str) -> None:
    assert run("fit", path, "--device", "1GiB", "--memory", "1600KiB", *options) == status
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
