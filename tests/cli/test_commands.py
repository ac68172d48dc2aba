"""What commands print, and what they end with."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub

import moebind
from moebind import ContextParams, GgmlType, ModelParams
from moebind.backend import host_memory
from moebind.bench import OffloadReport
from moebind.cli import main
from moebind.cli.options import in_options

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


def test_fit_prints_options_that_plan_takes(tiny_path: MakeTiny, capsys: Capture) -> None:
    path = tiny_path(n_expert=4, n_layer=3, n_head=2, n_head_kv=1)  # heads that whole blocks of Q8_0 go into
    device = ["--device", "8MiB", "--device", "6M", "--ctx-size-min", 256]
    options = [*device, "--memory", "GPU0=3MiB", "-ctk", "q8_0", "-nkvo", "--no-mmap", "-b", 256, "-fa", "on"]
    flat = ["-ngl", 3, "--device", "1GiB", "--memory", "1600KiB", "-c", 256]
    for given in (
        [*flat, "-ot", r"attn_(q|k)\.weight=CPU"],
        flat,
        [*options, "--goal", "prompt"],
        ["--device", "1GiB"],
    ):
        assert run("fit", path, *given, "--json") == 0, capsys.readouterr().err
        told = json.loads(capsys.readouterr().out)
        assert run("fit", path, *given) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith("Options of moebind plan and bench: ")
        words = shlex.split(line.partition(": ")[2])  # as a shell reads them
        assert words == told["options"]
        assert run("plan", path, *words, "--json") == 0
        planned = json.loads(capsys.readouterr().out)
        for plan in (told["plan"], planned):
            for each in plan["devices"]:
                del each["free"]  # changes all the time
        assert planned == told["plan"]


def test_bench_takes_the_options_that_fit_prints(path: Path, capsys: Capture) -> None:
    assert run("fit", path, "--device", "1GiB", "--memory", "1200KiB", "-c", "256", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    short = ["-p", 16, "-n", 2, "--warmup", 0, "-t", 1, "--prompt", "it is", "--placement", "all", "--json"]
    assert run("bench", "offload", path, *told["options"], *short) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert row["model_params"]["tensor_overrides"] == told["model_params"]["tensor_overrides"]
    assert row["allocated"][0]["model"] == told["plan"]["devices"][0]["model"]


def test_check_is_a_question_about_the_plan(path: Path, capsys: Capture) -> None:
    for options, status in ((["--device", "1GiB"], 0), (["--device", "1MiB", "-c", 2**15], 1)):
        assert run("plan", path, *options) == 0  # it answered what was asked
        said = capsys.readouterr().out
        assert run("plan", path, *options, "--check") == status
        assert "It does not fit." in capsys.readouterr().out or status == 0
        assert ("It fits." in said) is (status == 0)


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
    options = ["--device", "1GiB", "--memory", "1200KiB", "-c", 256]
    assert run("fit", path, *options) == 1
    assert "It does not fit.\nThe host lacks" in capsys.readouterr().out
    assert run("fit", path, *options, "--json") == 1
    assert json.loads(capsys.readouterr().out)["plan"]["fits"] is False


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


def test_bench_on_a_pipe_says_which_placement_is_finished(path: Path, capsys: Capture, tmp_path: Path) -> None:
    short = ["-p", 16, "-n", 2, "--warmup", 0, "-t", 1, "--n-ctx", 256, "--device", "loopback", "--prompt", "it is"]
    options = [*short, "--placement", "all", "--placement", "ot=nothing=CPU", "--output", tmp_path / "out.json"]
    assert run("bench", "offload", path, *options) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("1 of 2, all on the device: prompt ")
    assert said[0].endswith(" tokens/s")
    assert said[1].startswith("2 of 2, nothing on CPU: failed: ModelLoadError: ")
    assert run("bench", "offload", path, *options) == 1
    assert capsys.readouterr().err.splitlines()[0].endswith("tokens/s, measured before")
    assert run("bench", "offload", path, *options, "--no-progress") == 1
    assert capsys.readouterr().err == ""


def test_version_and_help(capsys: Capture) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"moebind {moebind.__version__}, llama.cpp {moebind.llama_cpp_version}\n"
    assert run("--help") == 0
    said = capsys.readouterr().out
    for command in ("plan", "fit", "experts", "doctor", "rpc-worker", "bench"):
        assert f"\n  {command} " in said
        assert run(command, "--help") == 0
        assert f"Usage: moebind {command}" in capsys.readouterr().out


#: What is said: the option, what it takes, and what may have been meant.
SAID: list[tuple[list[object], str]] = [
    (["plan", "MODEL", "--device", "CUDA9"], "--device is 'CUDA9'; it takes the size of a device"),
    (["plan", "MODEL", "--device", "loopback"], "only bench takes"),
    (["plan", "MODEL", "--device", "24"], "did you mean 24GiB?"),
    (["fit", "MODEL", "--device", "500KiB"], "did you mean"),
    (
        ["plan", "MODEL", "--device", "24XX"],
        "--device is '24XX'; it takes a number of bytes, or a text such as '24GiB'",
    ),
    (["plan", "MODEL", "--device", "1GiB", "-ncmoe", "-3"], "--n-cpu-moe is -3; it takes 0 to 4096"),
    (["plan", "MODEL", "--device", "1GiB", "-ub", "0"], "--ubatch-size is 0"),
    (["plan", "MODEL", "--device", "1GiB", "-ts", "1,2,3"], "3 shares, and there is 1 device;"),
    (["plan", "MODEL", "--device", "1GiB", "-ts", "0"], "at least one share is above 0"),
    (["plan", "MODEL", "--device", "1GiB", "--plot", "x.gguf"], "--plot is 'x.gguf'; it takes a file that ends in one"),
    (["plan", "MODEL", "--device", "1GiB", "--plot", "x"], "--plot is 'x'; it takes a file that ends in one"),
    (["fit", "MODEL", "--memory", "much"], "--memory is 'much'; it takes a number of bytes"),
    (["bench", "offload", "MODEL", "--device", "24"], "did you mean 24GiB?"),
    (["bench", "offload", "MODEL", "--device", "CUDA9"], "--device is 'CUDA9'; it takes 'loopback', a size such as"),
    (["bench", "offload", "MODEL", "--device", "loopback", "-r", "2"], "--repeats is 2"),
    (["bench", "offload", "MODEL", "--device", "loopback", "-p", "4096"], "make --ctx-size larger"),
    (
        ["bench", "offload", "MODEL", "--device", "loopback", "--output", "MODEL"],
        "a folder, or a path that ends in .json",
    ),
    (["bench", "offload", "MODEL", "--device", "loopback", "--plot", "x.gguf"], "it takes a file that ends in one"),
    (["bench", "offload", "MODEL", "--device", "loopback", "-ts", "1,1"], "2 shares, and there is 1 device;"),
]


@pytest.mark.parametrize(("arguments", "message"), SAID, ids=lambda each: ascii(each)[:60])
def test_messages_name_options(path: Path, capsys: Capture, arguments: list[object], message: str) -> None:
    before = path.read_bytes()
    assert run(*[path if each == "MODEL" else each for each in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("n_ctx is -1", "--ctx-size is -1"),
        ("devices[0] is 'x'; and devices", "--device is 'x'; and devices"),
        ("make n_ctx larger, or n_batch", "make --ctx-size larger, or --batch-size"),
        (
            "m/n_ctx/n_batch.gguf: no n_ctx=4, with_n_ctx, .n_ctx",
            "m/n_ctx/n_batch.gguf: no n_ctx=4, with_n_ctx, .n_ctx",
        ),
        ("memory of the path is short", "memory of the path is short"),
        ("", ""),
    ],
)
def test_only_names_of_arguments_become_options(message: str, told: str) -> None:
    assert in_options(message) == told


def test_a_reason_is_said_once_and_the_log_comes_back(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"junk, not a model")
    code = (
        "import sys, moebind; from moebind.cli import main\n"
        "try:\n    main(['experts', 'bad.gguf'])\n"
        "except SystemExit as ended:\n    assert ended.code == 1\n"
        "print('afterwards', file=sys.stderr)\n"
        "try:\n    moebind.Gguf.from_file('bad.gguf')\nexcept moebind.ModelLoadError:\n    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    command, _, library = done.stderr.partition("afterwards\n")
    assert command.startswith("moebind: bad.gguf is not a GGUF file that this llama.cpp can read: llama.cpp: gguf_init")
    assert (command.count("\n"), command.count("magic")) == (1, 1)
    assert "magic" in library


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
    folder = tmp_path / "folder.svg"
    folder.mkdir()
    for arguments in (
        ["plan", tmp_path / "none.gguf"],
        ["plan", tmp_path / "bad.gguf"],
        ["experts", tmp_path],
        ["bench", "offload", tmp_path / "none.gguf"],
        ["doctor", tmp_path / "none.gguf"],
        ["plan", path, "-ot", "nothing=CPU"],
        ["plan", path, "--device", "1GiB", "--plot", tmp_path / "none" / "x.svg"],
        ["plan", path, "--device", "1GiB", "--plot", folder],
        ["bench", "offload", path, "--device", "loopback", "--plot", tmp_path / "none" / "x.svg"],
    ):
        assert run(*arguments) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("moebind: ")
        assert said.err.count("\n") == 1, said.err
