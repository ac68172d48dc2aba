"""Parameters as options, which other commands take."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

MakeTiny = Callable[..., Path]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def without_devices(words: list[str]) -> list[str]:
    """Options without those devices that are no machine's."""
    kept = list(words)
    while "--device" in kept:
        at = kept.index("--device")
        del kept[at : at + 2]
    return kept


def test_fit_prints_options_that_plan_takes(tiny_path: MakeTiny, capsys: Capture) -> None:
    path = tiny_path(n_expert=4, n_layer=3, n_head=2, n_head_kv=1)  # heads that whole blocks of Q8_0 go into
    device = ["--device", "8MiB", "--device", "6M", "--ctx-size-min", 256]
    options = [*device, "--memory", "GPU0=3MiB", "-ctk", "q8_0", "-nkvo", "--no-mmap", "-b", 256, "-fa", "on"]
    flat = ["-ngl", 3, "--device", "1GiB", "--memory", "1600KiB", "-c", 256]
    for given in (
        [*flat, "-ot", r"attn_(q|k)\.weight=CPU"],
        flat,
        # Devices that are left out: the first, which has no room for copies of experts, and all.
        ["--device", "1MiB", "--device", "8MiB", "--device", "6MiB", "--memory", "3MiB", "-c", 256],
        ["--device", "1GiB", "--memory", "1KiB", "-c", 256],
        [*options, "--goal", "prompt"],
        ["--device", "1GiB"],
    ):
        assert run("fit", path, *given, "--json") == 0, capsys.readouterr().err
        told = json.loads(capsys.readouterr().out)
        assert run("fit", path, *given) == 0
        line, *others = (each for each in capsys.readouterr().out.splitlines() if each.startswith("Options of moebind"))
        words = shlex.split(line.partition(": ")[2])  # as a shell reads them
        if "--device none" in " ".join(words):
            assert line.startswith("Options of moebind plan, bench, generate, chat and serve: --device none -c 256 ")
            assert not others
            assert "-ngl" not in words  # there is nothing that layers could be on
        else:
            assert line.startswith("Options of moebind plan and bench: ")
            assert others[0].startswith("Options of moebind generate, chat and serve: ")
            assert shlex.split(others[0].partition(": ")[2]) == without_devices(words)
        assert words == told["options"]
        assert run("plan", path, *words, "--json") == 0
        planned = json.loads(capsys.readouterr().out)
        for plan in (told["plan"], planned):
            plan["model_params"].pop("devices", None)  # options name them in another way
            for each in plan["devices"]:
                del each["free"]  # changes all the time
        assert planned == told["plan"]


def test_a_draft_is_among_the_options(path: Path, tiny_path: MakeTiny, capsys: Capture) -> None:
    draft = tiny_path(n_layer=2)
    given = ["--device", "1GiB", "-c", 256, "--host", "2GiB", "-md", draft, "-ngld", 0, "-otd", r"attn_k=CPU"]
    assert run("fit", path, *given, "--json") == 0, capsys.readouterr().err
    told = json.loads(capsys.readouterr().out)
    assert run("fit", path, *given) == 0
    python, plan, bench, others = capsys.readouterr().out.splitlines()[-4:]
    assert f"draft=Draft(path={str(draft)!r}" in python
    assert plan.startswith("Options of moebind plan: ")
    assert bench.startswith("Options of moebind bench: ")
    assert "draft" not in bench.partition(": ")[2]
    assert others.startswith("Options of moebind generate, chat and serve: ")
    words = shlex.split(others.partition(": ")[2])
    assert "--device" not in words
    assert "--host" not in words
    assert words[words.index("--spec-draft-model") + 1] == str(draft)
    assert run("plan", path, *shlex.split(plan.partition(": ")[2]), "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["draft"] == told["plan"]["draft"]
    assert planned["device_bytes"] == told["plan"]["device_bytes"]


def test_bench_takes_the_options_that_fit_prints(path: Path, capsys: Capture) -> None:
    assert run("fit", path, "--device", "1GiB", "--memory", "1600KiB", "-c", "256", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    short = ["-p", 16, "-n", 2, "--warmup", 0, "-t", 1, "--prompt", "it is", "--placement", "all", "--json"]
    assert run("bench", "offload", path, *told["options"], *short) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert row["model_params"]["tensor_overrides"] == told["model_params"]["tensor_overrides"]
    assert row["allocated"][0]["model"] == told["plan"]["devices"][0]["model"]
