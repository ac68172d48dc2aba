"""moebind probe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

from moebind import Device

MakeTiny = Callable[..., Path]
FAST = ["-t", 1, "-c", 256]


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def test_what_is_there_is_what_was_planned(path: Path, device: Device, capsys: Capture) -> None:
    assert run("probe", path, "--device", device.name, "--n-cpu-moe", 2, *FAST, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["devices"]] == [device.name, "Host"]
    assert all(each["total"] == each["planned"] for each in found["devices"])
    assert all(
        each["total"] == each["model"] + each["context"] + each["compute"] + each["moe_cache"]
        for each in found["devices"]
    )
    assert found["devices"][0]["model"] > 0
    assert [line.rpartition(":")[2].split()[0] for line in found["overrides"]] == ["6"]
    assert (found["prompt_tokens"] > 1, found["load_ms"] > 0, found["first_token_ms"] > 0) == (True, True, True)
    assert found["plan"]["context_params"]["n_ctx"] == 256


def test_as_text(path: Path, capsys: Capture) -> None:
    assert run("probe", "-m", path, "-ngl", 0, "--cpu-moe", *FAST, "-p", "it is") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r": loaded in [\d.]+ s; first token '.*' after [\d.]+ s$", lines[0])
    assert lines[1].endswith("to CPU_Mapped")
    assert lines[2].split() == ["memory,", "MiB", "model", "context", "compute", "total"]
    assert "planned, MiB   planned    actual" in lines
    name, ours, theirs = lines[-1].split()
    assert (name, ours) == ("Host", theirs)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["none.gguf"], 1, "none.gguf does not exist"),
        (["MODEL", "--device", "1GiB"], 2, "--device describes a device"),
        (["MODEL", "-ot", "nothing=CPU"], 1, "matches none"),
        (["MODEL", "MODEL"], 2, "is more than there is a place for: moebind probe takes MODEL"),
    ],
)
def test_misuse(path: Path, capsys: Capture, arguments: list[str], status: int, message: str) -> None:
    assert run("probe", *[path if each == "MODEL" else each for each in arguments], *FAST) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
