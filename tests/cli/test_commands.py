"""What commands print, and what they end with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub

import moebind
from moebind import ContextParams, GgmlType, ModelParams
from moebind.bench import OffloadReport
from moebind.cli import main

MakeTiny = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


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


def test_options_are_parameters(path: Path, capsys: Capture) -> None:
    def planned(*options: object) -> list[dict[str, int]]:
        assert run("plan", path, "--device", "1GiB", "--json", *options) == 0
        found: list[dict[str, int]] = json.loads(capsys.readouterr().out)["devices"]
        return found

    usual = planned()
    assert planned("-ngl", "0")[0]["model"] == 0
    assert planned("-ngl", "-1")[0]["model"] == planned("-ngl", "all")[0]["model"] == usual[0]["model"]
    assert planned("-cmoe")[0]["model"] < planned("-ncmoe", "1")[0]["model"] < usual[0]["model"]
    assert planned("-ot", "ffn_down_exps=CPU", "-ot", "ffn_up_exps=CPU")[0]["model"] < usual[0]["model"]
    assert planned("-nkvo")[0]["context"] == 0
    assert planned("-ub", "32")[0]["compute"] < usual[0]["compute"]
    assert planned("-np", "4", "-c", "1024")[0]["context"] < usual[0]["context"]
    both = planned("--device", "1GiB", "-ts", "3,1")
    assert both[0]["model"] > 0 < both[1]["model"]
    read = planned("--no-mmap", "--no-repack")
    assert "CPU_Mapped" not in json.dumps(read)


def test_fit(path: Path, capsys: Capture) -> None:
    assert run("fit", path, "--memory", "1200KiB", "--device", "1GiB", "--n-ctx", "256", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"]["devices"][0]["total"] <= 1200 * 1024
    assert told["context_params"]["n_ctx"] == 256
    assert told["model_params"]["tensor_overrides"]
    options = ["--memory", "GPU0=3MiB", "--memory", "Host=1GiB", "--goal", "prompt", "--margin", "1KiB"]
    assert run("fit", path, "--device", "1GiB", *options) == 0
    said = capsys.readouterr().out
    assert "budget" in said
    assert "ModelParams(" in said


def test_fit_says_what_is_missing(path: Path, capsys: Capture) -> None:
    assert run("fit", path, "--memory", "1KiB", "--device", "1GiB", "-ngl", "3") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("moebind: ")
    assert said.err.count("\n") == 1


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


def test_doctor(path: Path, capsys: Capture) -> None:
    assert run("doctor") == 0
    assert "llama.cpp" in capsys.readouterr().out
    assert run("doctor", path, "--json", "-ngl", "0") == 0
    told = json.loads(capsys.readouterr().out)
    assert {"what", "why", "do", "severity"} == set(told["findings"][0])


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


def test_version_and_help(capsys: Capture) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"moebind {moebind.__version__}, llama.cpp {moebind.llama_cpp_version}\n"
    assert run("--help") == 0
    said = capsys.readouterr().out
    for command in ("plan", "fit", "experts", "doctor", "rpc-worker", "bench"):
        assert f"\n  {command} " in said
        assert run(command, "--help") == 0
        assert f"Usage: moebind {command}" in capsys.readouterr().out


MISUSED: list[list[object]] = [
    ["nothing"],
    ["plan"],
    ["plan", "m.gguf", "--nothing"],
    ["plan", "MODEL", "--device", "24XX"],
    ["plan", "MODEL", "--n-ctx", "-4"],
    ["plan", "MODEL", "--n-ctx", "many"],
    ["plan", "MODEL", "-ctk", "q9"],
    ["plan", "MODEL", "-fa", "maybe"],
    ["plan", "MODEL", "-ngl", "some"],
    ["plan", "MODEL", "-ot", "ffn"],
    ["plan", "MODEL", "-ot", "(=CPU"],
    ["plan", "MODEL", "-ot", "ffn=CUDA9"],
    ["plan", "MODEL", "-ts", "a,b"],
    ["plan", "MODEL", "-ts", ""],
    ["plan", "MODEL", "--n-cpu-moe", "-1"],
    ["plan", "MODEL", "\ud800"],
    ["plan", "a\0b"],
    ["fit", "MODEL", "--memory", "much"],
    ["fit", "MODEL", "--memory", "1GiB", "--memory", "2GiB"],
    ["fit", "MODEL", "--memory", "CUDA9=1GiB", "--device", "1GiB"],
    ["fit", "MODEL", "--goal", "fame"],
    ["bench"],
    ["bench", "offload", "MODEL", "--device", "nope"],
    ["bench", "offload", "MODEL", "--device", "loopback", "-r", "2"],
    ["bench", "offload", "MODEL", "--device", "loopback", "--placement", "everywhere"],
    ["bench", "offload", "MODEL", "--device", "loopback", "--json", "--markdown"],
    ["bench", "offload", "MODEL", "--device", "loopback", "--timeout", "nan"],
    ["rpc-worker", "--host", "0.0.0.0"],
    ["rpc-worker", "--port", "0"],
    ["rpc-worker", "--device", "CUDA9"],
    ["rpc-worker", "--threads", "0"],
]


@pytest.mark.parametrize("arguments", MISUSED, ids=lambda arguments: ascii(" ".join(map(str, arguments))))
def test_misuse_is_one_line_and_ends_with_2(path: Path, capsys: Capture, arguments: list[object]) -> None:
    assert run(*[path if each == "MODEL" else each for each in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    if arguments != ["bench"]:  # which shows what there is
        assert said.err.startswith("moebind: ")
        assert said.err.count("\n") == 1


def test_failures_end_with_1(tmp_path: Path, capsys: Capture, path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, or so it says")
    for arguments in (
        ["plan", tmp_path / "none.gguf"],
        ["plan", tmp_path / "bad.gguf"],
        ["experts", tmp_path],
        ["bench", "offload", tmp_path / "none.gguf"],
        ["doctor", tmp_path / "none.gguf"],
        ["plan", path, "-ot", "nothing=CPU"],
        ["plan", path, "--device", "1GiB", "--plot", tmp_path / "none" / "x.svg"],
    ):
        assert run(*arguments) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("moebind: ")
        assert said.err.count("\n") == 1, said.err
