"""moebind doctor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

MakeTiny = Callable[..., Path]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def test_doctor(path: Path, capsys: Capture) -> None:
    assert run("doctor") == 0
    assert "llama.cpp" in capsys.readouterr().out
    assert run("doctor", path, "--json", "-ngl", "0") == 0
    told = json.loads(capsys.readouterr().out)
    assert {"what", "why", "do", "severity"} == set(told["findings"][0])


def test_a_command_line_of_plan_may_stay_as_it_is(path: Path, capsys: Capture) -> None:
    assert run("doctor", path, "--cpu-moe", "-c", "4k", "-ctk", "q8_0", "-t", 1) == 0
    assert "llama.cpp" in capsys.readouterr().out
    assert run("doctor", "--help") == 0
    said = capsys.readouterr().out
    assert "--n-gpu-layers" in said
    assert "--cpu-moe" not in said  # what it says does not depend on that
