"""moebind experts."""

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


def test_experts(path: Path, capsys: Capture) -> None:
    assert run("experts", path) == 0
    assert "4 experts, 2 used" in capsys.readouterr().out
    assert run("experts", path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [layer["n_expert"] for layer in told["layers"]] == [4, 4, 4]
    assert told["nbytes"] == moebind.experts(path).nbytes


def test_headers_on_the_hub(hub: Hub, capsys: Capture) -> None:
    assert run("experts", "hf://someone/tiny/F32") == 0
    assert "4 experts, 2 used" in capsys.readouterr().out
    assert run("plan", "hf://someone/tiny/F32", "--device", "1GiB", "--cpu-moe") == 0
    assert "nothing was downloaded" in capsys.readouterr().out
    assert run("plan", "hf://someone/nothing/F32") == 1
    assert capsys.readouterr().err.count("\n") == 1
