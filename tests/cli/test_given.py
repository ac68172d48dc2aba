"""What a command line gives: a file, and options that win over it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Capture, run

import moebind
from moebind import ContextParams, Device, Fit, ModelParams

MakeTiny = Callable[..., Path]


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


@pytest.fixture(scope="module")
def file(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit for a machine that is not here, with something that no option sets."""
    context = ContextParams(n_ctx=768, n_ubatch=64, swa_full=False, rope_freq_base=1e4)
    fit = moebind.fit(path, memory="1600KiB", context_params=context, devices=["8MiB"], host="1GiB")
    assert fit.model_params.tensor_overrides
    found = tmp_path_factory.mktemp("fits") / "fit.json"
    fit.save(found)
    return found


def planned(path: Path, capsys: Capture, *options: object) -> dict[str, Any]:
    assert run("plan", path, *options, "--json") == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_plan_of_a_fit_is_the_fits_own(path: Path, file: Path, capsys: Capture) -> None:
    assert planned(path, capsys, "--params", file) == Fit.load(file).plan.to_dict()


def test_options_win_over_the_file(path: Path, file: Path, capsys: Capture) -> None:
    fit = Fit.load(file)
    told = planned(
        path, capsys, "--params", file, "-c", 512, "-ub", 32, "--swa-full", "--device", "1GiB", "--host", "2GiB"
    )
    context = fit.context_params.with_n_ctx(512).with_n_ubatch(32).with_swa_full(True)
    assert ContextParams.from_dict(told["context_params"]) == context
    assert ModelParams.from_dict(told["model_params"]) == fit.model_params
    assert [device["capacity"] for device in told["devices"]] == [2**30, 2**31]


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "PATH", "a", "-n", "1", "-c", "64"],
        ["embed", "PATH", "a"],
        ["plan", "PATH"],
        ["fit", "PATH"],
        ["bench", "decode", "PATH", "-n", "1", "-p", "1", "--no-progress"],
        ["probe", "PATH", "-c", "64"],
        ["routing", "PATH", "-p", "a", "-n", "1"],
    ],
)
def test_placing_without_a_device_has_a_note(path: Path, device: Device, capsys: Capture, command: list[str]) -> None:
    words = [str(path) if each == "PATH" else each for each in command]
    for options, told in (
        (["-cmoe", "-ngl", "9"], "--n-gpu-layers and --cpu-moe change nothing"),
        (["-ot", "ffn_up_exps=CPU"], "--override-tensor changes nothing"),
        (["-ncmoe", "1", "-ngl", "0"], "--n-cpu-moe changes nothing"),
        ([], None),
    ):
        assert run(*words, *options, "--device", "none") == 0
        note = f"moebind: note: {told}: no device takes layers, so all weights are in host memory"
        notes = [line for line in capsys.readouterr().err.splitlines() if "nothing" in line]
        assert notes == ([note] if told else [])
    if command[0] != "embed":
        assert run(*words, "-cmoe", "--device", device.name) == 0
        assert "changes nothing" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "instead"),
    [
        (["generate", "PATH", "a", "-n", "1"], ""),
        (["serve", "PATH", "--port", "0"], ""),
        (["plan", "PATH"], ", or describe a card that is not here, such as --device 24GiB"),
        (["fit", "PATH"], ", or describe a card that is not here, such as --device 24GiB"),
    ],
)
def test_a_cache_of_experts_without_a_device(path: Path, capsys: Capture, command: list[str], instead: str) -> None:
    words = [str(path) if each == "PATH" else each for each in command]
    assert run(*words, "--moe-cache", "1MiB", "--device", "none") == 2
    assert capsys.readouterr().err == (
        "moebind: --moe-cache is 1.0 MiB, and there is no device besides the processor to hold such a cache: "
        f"give 0, or leave it out{instead}\n"
    )


def test_a_cache_of_experts_that_is_possible_or_none(path: Path, capsys: Capture) -> None:
    for given in (["--moe-cache", "1MiB", "--device", "1GiB", "-cmoe"], ["--moe-cache", 0, "--device", "none"]):
        assert run("plan", path, *given) == 0, capsys.readouterr().err
    assert run("fit", path, "--moe-cache", "auto", "--device", "none") == 0


@pytest.mark.parametrize("rules", [["-ot", "ffn_up_exps=CPU"], ["-cmoe"], ["-ncmoe", 1]])
def test_rules_take_the_place_of_the_files(path: Path, file: Path, capsys: Capture, rules: list[object]) -> None:
    [rule] = planned(path, capsys, "--params", file, *rules)["model_params"]["tensor_overrides"]
    [expected] = planned(path, capsys, "--device", "8MiB", *rules)["model_params"]["tensor_overrides"]
    assert rule == expected


def test_a_length_that_the_file_leaves_out(path: Path, tmp_path: Path, capsys: Capture) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"model_params": {"n_gpu_layers": 1}}', encoding="utf-8")
    assert planned(path, capsys, "--device", "1GiB", "--params", mine)["n_ctx"] == ContextParams().n_ctx
    assert planned(path, capsys, "--device", "1GiB")["n_ctx"] == 4096


def test_a_fit_of_another_model_is_refused(tiny_path: MakeTiny, file: Path, capsys: Capture) -> None:
    other = tiny_path(n_expert=8, n_layer=3)
    for command in (["plan"], ["fit"], ["bench", "offload"]):
        assert run(*command, other, "--params", file) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "fit.json is a fit for" in said.err
        assert "is another model" in said.err


def test_files_that_are_no_fits(path: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bad.json").write_text('{"context_params": {"n_ctxx": 1}}', encoding="utf-8")
    assert run("plan", path, "--params", tmp_path / "bad.json") == 2
    assert "bad.json: ContextParams has no 'n_ctxx'; did you mean 'n_ctx'?" in capsys.readouterr().err
    assert run("plan", path, "--params", path) == 2
    assert "is not JSON, as parameters are saved in" in capsys.readouterr().err
    (tmp_path / "preset.ini").write_text("[moe]\nmodel = moe.gguf\n", encoding="utf-8")
    assert run("plan", path, "--params", tmp_path / "preset.ini") == 2
    said = capsys.readouterr().err
    assert "preset.ini is not JSON" in said
    assert "(moebind fit --save, tune --save); a preset, which tune --preset writes, is for llama-server itself" in said
    assert run("plan", path, "--params", tmp_path / "none.json") == 1
    assert "none.json" in capsys.readouterr().err


def test_fit_saves_what_the_others_take(path: Path, tmp_path: Path, capsys: Capture) -> None:
    saved = tmp_path / "fit.json"
    options = ["--device", "8MiB", "--host", "1GiB", "--memory", "1600KiB", "-c", 256, "-t", 1]
    assert run("fit", path, *options, "--save", saved, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    options = told.pop("options")
    assert told == json.loads(saved.read_text(encoding="utf-8"))
    assert "--host" not in options  # bench has a real one
    short = ["-p", 16, "-n", 2, "--warmup", 0, "--prompt", "it is", "--json", "--no-progress"]
    assert run("bench", "offload", path, "--params", saved, *short) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert row["name"] == "as fit.json has it"
    assert row["model_params"]["tensor_overrides"] == told["model_params"]["tensor_overrides"]
    assert row["context_params"]["n_ctx"] == 256
    assert row["allocated"][0]["model"] == told["plan"]["devices"][0]["model"]
    before = path.read_bytes()
    assert run("fit", path, *["--device", "8MiB"], "--save", path) == 2
    assert "is a model; a fit is saved in a file of its own" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_what_no_option_sets_is_named(path: Path, file: Path, capsys: Capture) -> None:
    assert run("fit", path, "--params", file, "--memory", "2MiB") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Options of moebind ")]
    assert all("(none sets rope_freq_base; --save and --params keep it)" in line for line in told)
    [plan] = [line for line in told if line.startswith("Options of moebind plan")]
    assert "--device 8MiB" in plan


def test_a_fit_for_devices_of_another_machine(path: Path, device: Device, tmp_path: Path, capsys: Capture) -> None:
    moebind.fit(path, memory="2MiB", n_ctx=256, devices=[device]).save(tmp_path / "fit.json")
    told = json.loads((tmp_path / "fit.json").read_text(encoding="utf-8"))
    assert told["devices"] == told["model_params"]["devices"] == [device.name]
    assert planned(path, capsys, "--params", tmp_path / "fit.json")["devices"][0]["name"] == device.name
    told["devices"] = told["model_params"]["devices"] = ["CUDA7"]
    (tmp_path / "fit.json").write_text(json.dumps(told), encoding="utf-8")
    assert run("plan", path, "--params", tmp_path / "fit.json") == 2
    assert "--device is 'CUDA7'; it takes the size of a device" in capsys.readouterr().err
    other = planned(path, capsys, "--params", tmp_path / "fit.json", "--device", "8MiB")
    assert [each["name"] for each in other["devices"]] == ["GPU0", "Host"]
