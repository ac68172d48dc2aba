"""Options that are parameters: declared once, named as llama.cpp has them, written as they are read."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from parameter_values import made

from moebind import ContextParams, FlashAttnType, GgmlType, LoadMode, ModelParams, SplitMode
from moebind.cli.given import Given, takes
from moebind.cli.parameters import CONTEXT, MODEL, option_names, unwritten
from moebind.cli.text_options import SAMPLING
from moebind.cli.written_options import as_options

ROOT = Path(__file__).resolve().parents[2]
READ: list[Given] = []


@takes(*MODEL, *CONTEXT)
def command(given: Given) -> None:
    READ.append(given)


app = typer.Typer(add_completion=False)
app.command()(command)


def read(*arguments: object) -> tuple[ModelParams, ContextParams]:
    READ.clear()
    app([str(each) for each in arguments], standalone_mode=False)
    [found] = READ
    chosen = found.read("model.gguf", ["1GiB", "1GiB", "1GiB", "1GiB"])
    return chosen.model_params, chosen.context_params


def fields_of_options() -> set[str]:
    known = {field.name for kind in (ModelParams, ContextParams) for field in dataclasses.fields(kind)}
    return known & {name for option in (*MODEL, *CONTEXT) for name in option.fields}


def is_plain(params: ModelParams) -> bool:
    """Whether options can say it: rules are strict, some device has a share, written in nine digits."""
    shares = params.tensor_split
    return all(rule.strict for rule in params.tensor_overrides) and (
        shares is None or (any(shares) and all(float(f"{share:.9g}") == share for share in shares))
    )


@given(made(ModelParams, fields_of_options()).filter(is_plain), made(ContextParams, fields_of_options()))
def test_what_is_written_is_read(model: ModelParams, context: ContextParams) -> None:
    if model.n_gpu_layers < 0:
        model = model.with_n_gpu_layers(-1)
    assert unwritten(model) == unwritten(context) == []
    assert read(*as_options(model, context)) == (model, context)


def test_defaults_are_the_parameters_own() -> None:
    assert read() == (ModelParams(), ContextParams())


READINGS: list[tuple[list[object], ModelParams | ContextParams]] = [
    (["-ngl", "all"], ModelParams(n_gpu_layers=-1)),
    (["--gpu-layers", 7], ModelParams(n_gpu_layers=7)),
    (["-sm", "none", "-mg", 2], ModelParams(split_mode=SplitMode.NONE, main_gpu=2)),
    (["--split-mode", "ROW"], ModelParams(split_mode=SplitMode.ROW)),
    (["-sm", "tensor"], ModelParams(split_mode=SplitMode.TENSOR)),
    (["-ts", "3,1"], ModelParams(tensor_split=(3, 1))),
    (["-ts", "3/1/0"], ModelParams(tensor_split=(3, 1, 0))),
    (["-ot", "a=CPU,b=CUDA0"], ModelParams().with_cpu_override("a").with_tensor_override("b", "CUDA0")),
    (["-ot", "a=CPU", "-ot", "b=CUDA0"], ModelParams().with_cpu_override("a").with_tensor_override("b", "CUDA0")),
    (["-ot", r"\d{1,2}=CPU"], ModelParams().with_cpu_override(r"\d{1,2}")),
    (["-ot", "experts:0-11=CPU"], ModelParams().with_n_cpu_moe(12)),
    (["-cmoe"], ModelParams().with_cpu_moe_all()),
    (["-ncmoe", 3], ModelParams().with_n_cpu_moe(3)),
    (["-cmoe", "-ncmoe", 3, "-ot", "a=CPU"], ModelParams().with_cpu_override("a").with_n_cpu_moe(3).with_cpu_moe_all()),
    (["--no-mmap"], ModelParams(load_mode=LoadMode.NONE)),
    (["-lm", "mmap+mlock"], ModelParams(load_mode=LoadMode.MMAP_MLOCK)),
    (["--load-mode", "dio"], ModelParams(load_mode=LoadMode.DIRECT_IO)),
    (["-nr"], ModelParams(use_extra_bufts=False)),
    (["--no-repack", "--repack"], ModelParams()),
    (["-c", 0], ContextParams(n_ctx=0)),
    (["-c", "32k"], ContextParams(n_ctx=32768)),
    (["--n-ctx", 99, "-b", 64, "-ub", 32], ContextParams(n_ctx=99, n_batch=64, n_ubatch=32)),
    (["-fa", "on"], ContextParams(flash_attn_type=FlashAttnType.ENABLED)),
    (["-fa", "OFF"], ContextParams(flash_attn_type=FlashAttnType.DISABLED)),
    (["--flash-attn", "1"], ContextParams(flash_attn_type=FlashAttnType.ENABLED)),
    (["-fa", "auto"], ContextParams()),
    (["-ctk", "q8_0", "-ctv", "F32"], ContextParams(type_k=GgmlType.Q8_0, type_v=GgmlType.F32)),
    (["-nkvo"], ContextParams(offload_kqv=False)),
    (["-nkvo", "--kv-offload"], ContextParams()),
    (["--no-op-offload"], ContextParams(op_offload=False)),
    (["--no-swa-full"], ContextParams(swa_full=False)),
    (["--swa-full"], ContextParams(swa_full=True)),
    (["-kvu", "-np", 4], ContextParams(kv_unified=True, n_seq_max=4)),
    (["--kv-unified", "-no-kvu"], ContextParams()),
    (["-t", 3], ContextParams(n_threads=3, n_threads_batch=3)),
    (["-t", 3, "-tb", 5], ContextParams(n_threads=3, n_threads_batch=5)),
]


@pytest.mark.parametrize(("arguments", "expected"), READINGS, ids=lambda each: ascii(each)[:40])
def test_options_are_parameters(arguments: list[object], expected: ModelParams | ContextParams) -> None:
    both = (expected, ContextParams()) if isinstance(expected, ModelParams) else (ModelParams(), expected)
    assert read(*arguments) == both


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-sm", "columns"], "--split-mode is 'columns'; it takes one of none, layer, row, tensor"),
        (["-fa", "maybe"], "--flash-attn is 'maybe'; it takes one of on, off, auto"),
        (["-lm", "fast"], "--load-mode is 'fast'; it takes one of auto, none, mmap"),
        (["-ctk", "q9"], "--cache-type-k is 'q9'; it takes one of f32, f16"),
        (["-mg", "16"], "main_gpu is 16; it takes 0 to 15"),
        (["-ngl", "some"], "--n-gpu-layers is 'some'; it takes a number of layers, all or auto"),
        (["-ngl", "-2"], "n_gpu_layers is -2"),
        (["-ot", "a=CPU,b"], "--override-tensor is 'a=CPU,b'; it takes PATTERN=TARGET"),
        (["-ot", "experts:9-3=CPU"], "the first layer comes first"),
        (["-ts", "1,1,1,1,1"], "5 shares, and there are 4 devices"),
        (["-ts", "a"], "--tensor-split has 'a'; it takes numbers"),
        (["-ts", "0,0"], "at least one share is above 0"),
        (["-np", "0"], "n_seq_max is 0"),
    ],
)
def test_what_is_wrong_is_told(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read(*arguments)


def test_names_are_those_of_llama_cpp() -> None:
    theirs = (ROOT / "vendor/llama.cpp/common/arg.cpp").read_text(encoding="utf-8")
    # As parameters are called; gone since; only a flag there; --moe-cache-mib there, in whole MiB.
    ours = {"--n-ctx", "--no-mmap", "--no-swa-full", "--moe-cache"}
    flags = [
        flag.strip() for option in (*MODEL, *CONTEXT, *SAMPLING) for part in option.flags for flag in part.split("/")
    ]
    assert len(set(flags)) == len(flags)
    assert {flag for flag in flags if flag and f'"{flag}"' not in theirs} <= ours


def test_errors_name_the_option_of_a_parameter() -> None:
    names = option_names()
    assert names["n_seq_max"] == "--parallel"
    assert names["tensor_overrides"] == names["pattern"] == "--override-tensor"
    assert names["load_mode"] == "--load-mode"
    assert names["n_layers"] == "--n-cpu-moe"
    assert set(names) - {"pattern", "n_layers"} == fields_of_options()


def test_what_no_option_sets_is_told() -> None:
    assert unwritten(ModelParams(check_tensors=True, n_gpu_layers=3)) == ["check_tensors"]
    assert unwritten(ContextParams(rope_freq_base=1e4, no_perf=True)) == ["rope_freq_base", "no_perf"]


@given(st.data())
def test_a_command_has_the_help_that_was_declared(data: st.DataObject) -> None:
    option = data.draw(st.sampled_from([*MODEL, *CONTEXT]))
    parameter = option.parameter("as it was")
    assert parameter.default is None
    [declared] = parameter.annotation.__metadata__
    assert (declared.help, declared.show_default) == (option.help, "as it was")
