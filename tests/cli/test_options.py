"""Options: the parameters that they are, and messages that name them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Capture, run

from moebind.cli.options import calls_as_options, in_options

MakeTiny = Callable[..., Path]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


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


#: What is said: the option, what it takes, and what may have been meant.
SAID: list[tuple[list[object], str]] = [
    (["plan", "MODEL", "--device", "CUDA9"], "--device is 'CUDA9'; it takes the size of a device"),
    (
        ["plan", "MODEL", "--device", "loopback"],
        "'loopback', a worker process for commands that compute",
    ),
    (["plan", "MODEL", "--device", "24"], "give a unit, as in '24GiB'"),
    (["fit", "MODEL", "--device", "500KiB"], "which is 512000 bytes; it takes a size such as 24GiB"),
    (
        ["plan", "MODEL", "--device", "24XX"],
        "--device is '24XX'; it takes a number of bytes, or a text such as '24GiB'",
    ),
    (["plan", "MODEL", "--device", "1GiB", "-ncmoe", "-3"], "--n-cpu-moe is -3; it takes 0 to 4096"),
    (["plan", "MODEL", "--device", "1GiB", "-ub", "0"], "--ubatch-size is 0"),
    (
        ["plan", "MODEL", "--device", "1GiB", "-c", "32kB"],
        "--ctx-size is '32kB'; it takes tokens, such as 3",
    ),
    (
        ["fit", "MODEL", "--device", "1GiB", "-c", "x"],
        "--ctx-size is 'x'; it takes tokens, such as 32768",
    ),
    (["fit", "MODEL", "--device", "1GiB", "--ctx-size-min", "x"], "--ctx-size-min is 'x'; it takes tokens"),
    (["plan", "MODEL", "--device", "1GiB", "-ts", "1,2,3"], "3 shares, and there is 1 device;"),
    (["plan", "MODEL", "--device", "1GiB", "-ts", "0"], "at least one share is above 0"),
    (["plan", "MODEL", "--device", "1GiB", "--plot", "x.gguf"], "--plot is 'x.gguf'; it takes a file that ends in one"),
    (["plan", "MODEL", "--device", "1GiB", "--plot", "x"], "--plot is 'x'; it takes a file that ends in one"),
    (["fit", "MODEL", "--memory", "much"], "--memory is 'much'; it takes a number of bytes"),
    (["bench", "offload", "MODEL", "--device", "24"], "give a unit, as in '24GiB'"),
    (["bench", "offload", "MODEL", "--device", "CUDA9"], "--device is 'CUDA9'; it takes 'loopback', a size such as"),
    (["bench", "offload", "MODEL", "--device", "loopback", "-r", "2"], "--repeats is 2"),
    (["bench", "offload", "MODEL", "--device", "loopback", "-p", "4096"], "make --ctx-size larger"),
    (
        ["bench", "offload", "MODEL", "--device", "loopback", "--output", "MODEL"],
        "a folder, or a path that ends in .json",
    ),
    (["bench", "offload", "MODEL", "--device", "loopback", "--plot", "x.gguf"], "it takes a file that ends in one"),
    (["bench", "offload", "MODEL", "--device", "loopback", "-ts", "1,1"], "2 shares, and there is 1 device;"),
    (["serve", "--models-dir", ".", "-md", "MODEL"], "--spec-draft-model is given, which is for one model; there are"),
    (["serve", "--models-dir", ".", "-hfd", "o/r"], "--spec-draft-hf is given, which is for one model; there are"),
    (["serve", "--models-dir", ".", "--spec-type", "draft-mtp"], "--spec-type is 'draft-mtp', which is for one model;"),
    (["serve", "--models-dir", ".", "--spec-type", "draft-eagle3"], "'draft-eagle3', which is for one model;"),
    (["serve", "--models-dir", ".", "--mmproj", "MODEL"], "moebind: --mmproj belongs to one model"),
    (["serve", "MODEL", "--lazy-mode", "on"], "set lazy_mode in a file of parameters (--params) instead\n"),
    (["serve", "MODEL", "--override-kv", "a=int:1"], "set kv_overrides in a file of parameters (--params) instead\n"),
    (["serve", "MODEL", "--moe-cache-mib", "1"], "where no plan would know of it: use --moe-cache instead\n"),
    (["serve", "MODEL", "--rerank"], "is moebind's to set: use --embeddings, and --pooling rank\n"),
    (["serve", "MODEL", "--api-key", "x"], "whoever lists processes could read it; use --api-key-file\n"),
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


WRITTEN = [
    ("with_n_cpu_moe(12) keeps the experts of the first 12", "--n-cpu-moe 12 keeps the experts of the first 12"),
    ("with_cpu_moe_all() keeps 3 GiB", "--cpu-moe keeps 3 GiB"),
    ("with ModelParams.with_cpu_moe_all() or with_n_cpu_moe()", "with --cpu-moe or --n-cpu-moe"),
    ("it is no mixture; load it without, or pass strict=False", "it is no mixture; load it without"),
    ("load the model with use_extra_bufts=False", "load the model with --no-repack"),
    (
        "with swa_full=False, a longer one; swa_full=True keeps it",
        "with --no-swa-full, a longer one; --swa-full keeps it",
    ),
    ("or an n_ctx of 256 shortens the context", "or --ctx-size 256 shortens the context"),
    ("set n_gpu_layers=0 if you want the CPU", "give --n-gpu-layers 0 if you want the CPU"),
    ("ContextParams(n_threads=2) if nothing", "--threads 2 if nothing"),
    ("with fewer threads: ContextParams(n_threads=1, n_threads_batch=1)", "with fewer threads: --threads 1"),
    ("ContextParams(n_threads=1, n_threads_batch=2)", "ContextParams(n_threads=1, n_threads_batch=2)"),
    ("moebind.doctor() says; moebind.fit finds", "moebind doctor says; moebind fit finds"),
    ("is moebind's to set: use host", "is moebind's to set: use --host"),
    ("would know of it: set n_ctx instead", "would know of it: use --ctx-size instead"),
    ("n_ctx 4096, n_ubatch 512, cache F16", "n_ctx 4096, n_ubatch 512, cache F16"),
    ("such as template='chatml-tools', or use_grammar=False", "such as --chat-template chatml-tools"),
    (
        "template='chatml-tools', tool_choice='auto', or use_grammar=False",
        "--chat-template chatml-tools, or --tool-choice auto",
    ),
    ("leave one out, or pass tool_choice='none'", "leave one out, or give --tool-choice none"),
    ("'chatml' and those of chat_builtin_templates() work", "'chatml' and llama.cpp's own work"),
    ("n_ctx=4, with_n_ctx, {'swa_full': True}", "n_ctx=4, with_n_ctx, {'swa_full': True}"),
    ("m/swa_full=True.gguf", "m/swa_full=True.gguf"),
]


@pytest.mark.parametrize(("text", "told"), WRITTEN)
def test_what_is_to_be_written_is_written_as_options(text: str, told: str) -> None:
    assert calls_as_options(text) == told


def test_advice_of_plans_is_in_options(path: Path, capsys: Capture) -> None:
    assert run("plan", path, "--device", "1MiB", "-c", 256) == 0
    said = capsys.readouterr().out
    assert "moebind fit finds parameters that fit" in said
    assert "--cpu-moe is not enough" in said
    assert "with_" not in said


def test_dense_models_are_told_without_python(tiny_path: MakeTiny, capsys: Capture) -> None:
    assert run("plan", tiny_path(), "--cpu-moe", "--device", "1GiB") == 1
    said = capsys.readouterr().err
    assert "has no experts" in said
    assert said.rstrip().endswith("load it without")
