"""Parameters as llama-server's options."""

from __future__ import annotations

import subprocess
from dataclasses import fields

import pytest
from hypothesis import given, settings, strategies

import moebind
from conftest import CPU
from moebind import (
    AttentionType,
    ContextParams,
    ContextType,
    Device,
    FlashAttnType,
    GgmlType,
    LazyMode,
    LoadMode,
    ModelParams,
    PoolingType,
    RopeScalingType,
    SplitMode,
)
from moebind.params.params import CACHE_TYPES
from moebind.server import arguments
from moebind.server.arguments import ROWS, Devices, check, command_line
from moebind.server.extra import option_names
from moebind.server.process import program

HOST = Devices((), {"CPU": "CPU"})
DEFAULTS = {each.name: each.default for kind in (ModelParams, ContextParams) for each in fields(kind)}


def test_every_parameter_has_a_row() -> None:
    assert sorted(ROWS) == sorted(DEFAULTS)


def test_every_option_is_llama_servers() -> None:
    names = option_names()
    for row in ROWS.values():
        assert bool(row.option) is not bool(row.refused)
        if row.option:
            assert f"--{row.option}" in names


def test_options_that_are_off_have_a_name_for_it() -> None:
    written = arguments.settings(
        ModelParams(use_extra_bufts=False),
        ContextParams(offload_kqv=False, op_offload=False, kv_unified=False, no_perf=True),
        HOST,
    )
    off = [name for name in command_line(written) if name.startswith("--no-")]
    assert len(off) == 5
    assert set(off) <= set(option_names())


@pytest.mark.parametrize(
    ("params", "option", "value"),
    [
        (ModelParams(n_gpu_layers=-1), "n-gpu-layers", "all"),
        (ModelParams(n_gpu_layers=3), "n-gpu-layers", "3"),
        (ModelParams(split_mode=SplitMode.ROW), "split-mode", "row"),
        (ModelParams(load_mode=LoadMode.MMAP_MLOCK), "load-mode", "mmap+mlock"),
        (ModelParams(load_mode=LoadMode.DIRECT_IO), "load-mode", "dio"),
        (ModelParams(lazy_mode=LazyMode.ON), "lazy-mode", "on"),
        (ModelParams(tensor_split=[0.25, 1]), "tensor-split", "0.25,1"),
        (ModelParams(check_tensors=True), "check-tensors", True),
        (ModelParams(check_tensors=False), "check-tensors", None),
        (ModelParams(use_extra_bufts=False), "repack", False),
        (ModelParams(), "device", "none"),
        (ModelParams(), "override-tensor", None),
        (ModelParams().with_cpu_override("a").with_cpu_override("b"), "override-tensor", "a=CPU,b=CPU"),
        (ContextParams(n_ctx=4096), "ctx-size", "4096"),
        (ContextParams(flash_attn_type=FlashAttnType.DISABLED), "flash-attn", "off"),
        (ContextParams(type_k=GgmlType.Q8_0), "cache-type-k", "q8_0"),
        (ContextParams(rope_freq_base=10000.0), "rope-freq-base", "10000"),
        (ContextParams(rope_scaling_type=RopeScalingType.YARN), "rope-scaling", "yarn"),
        (ContextParams(pooling_type=PoolingType.MEAN), "pooling", "mean"),
        (ContextParams(pooling_type=PoolingType.UNSPECIFIED), "pooling", None),
        (ContextParams(swa_full=False), "swa-full", None),
        (ContextParams(embeddings=True), "embedding", True),
        (ContextParams(moe_cache_size="3MiB"), "moe-cache-mib", "3"),
    ],
)
def test_values(params: ModelParams | ContextParams, option: str, value: object) -> None:
    model = params if isinstance(params, ModelParams) else ModelParams()
    context = params if isinstance(params, ContextParams) else ContextParams()
    assert arguments.settings(model, context, HOST).get(option) == value


def test_metadata_is_written_as_llama_server_reads_it() -> None:
    params = ModelParams(kv_overrides={"a": 1, "b": True, "c": 0.5, "d": 'x, "y"'})
    written = arguments.settings(params, ContextParams(), HOST)["override-kv"]
    assert written == 'a=int:1,b=bool:true,c=float:0.5,"d=str:x, ""y"""'


@pytest.mark.parametrize(
    "params",
    [
        ModelParams(vocab_only=True),
        ModelParams(no_alloc=True),
        ModelParams(load_mtp=True),
        ModelParams(progress_callback=True),
        ContextParams(n_rs_seq=2),
        ContextParams(n_outputs_max=2),
        ContextParams(n_outputs_max_per_seq=2),
        ContextParams(ctx_type=ContextType.MTP),
        ContextParams(attention_type=AttentionType.CAUSAL),
        ContextParams(defrag_thold=0.5),
        ContextParams(eval_callback=lambda tensor, ask: False),
        ContextParams(abort_callback=lambda: False),
    ],
    ids=lambda params: repr(params).partition("=")[0],
)
def test_what_it_does_not_know_is_refused(params: ModelParams | ContextParams) -> None:
    [changed] = [each.name for each in fields(params) if getattr(params, each.name) != each.default]
    assert ROWS[changed].refused
    with pytest.raises(ValueError, match=rf"^{changed} is .*; leave it out$"):
        check(params)


def test_all_that_is_refused_was_tried() -> None:
    refused = {name for name, row in ROWS.items() if row.refused}
    marks = test_what_it_does_not_know_is_refused.pytestmark  # type: ignore[attr-defined]
    [tried] = [mark.args[1] for mark in marks]
    assert refused == {
        each.name for params in tried for each in fields(params) if getattr(params, each.name) != each.default
    }


def test_what_it_knows_passes() -> None:
    check(ModelParams(n_gpu_layers=2).with_cpu_moe_all())
    check(ContextParams(n_ctx=4096, type_k=GgmlType.Q8_0))


@pytest.mark.parametrize("pattern", ["a{1,3}", "a=b"])
def test_a_pattern_that_it_would_cut_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"tensor_overrides has the pattern .*: llama-server ends a pattern"):
        arguments.settings(ModelParams().with_cpu_override(pattern), ContextParams(), HOST)


def test_a_target_that_it_has_no_name_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"to 'CPU_REPACK', which llama-server cannot: it takes the buffer types CPU"):
        arguments.settings(ModelParams().with_tensor_override("a", "CPU_REPACK"), ContextParams(), HOST)


def test_a_cache_that_it_cannot_count_is_refused() -> None:
    with pytest.raises(ValueError, match="^moe_cache_size is 1048577 bytes; .* whole MiB, such as 1 or 2$"):
        arguments.settings(CPU, ContextParams(moe_cache_size=2**20 + 1), HOST)


def test_scaling_that_it_has_no_word_for_is_refused() -> None:
    with pytest.raises(ValueError, match="^rope_scaling_type is"):
        arguments.settings(CPU, ContextParams(rope_scaling_type=RopeScalingType.LONGROPE), HOST)


def test_devices_of_servers_are_counted_anew(device: Device) -> None:
    with moebind.loopback_device() as second:
        assert second.name != "RPC0"
        found = Devices.of([second])
        assert found.used == ("RPC0",)
        assert found.rpc == (second.description,)
        assert found.buffer(second.name) == f"RPC0[{second.description}]"
        assert found.buffer("CPU") == "CPU"
        both = Devices.of([second, device])
        assert both.used == ("RPC0", "RPC1")
        assert both.rpc == (second.description, device.description)
        with pytest.raises(ValueError, match="which llama-server cannot"):
            found.buffer(device.name)


@settings(max_examples=50)
@given(strategies.sampled_from(CACHE_TYPES), strategies.integers(1, 2**20), strategies.booleans())
def test_values_come_back(kind: GgmlType, n_ctx: int, unified: bool) -> None:
    written = arguments.settings(CPU, ContextParams(type_k=kind, n_ctx=n_ctx, kv_unified=unified), HOST)
    line = command_line(written)
    assert line[line.index("--ctx-size") + 1] == str(n_ctx)
    assert GgmlType[line[line.index("--cache-type-k") + 1].upper()] == kind
    assert ("--kv-unified" in line) is unified
    assert ("--no-kv-unified" in line) is not unified


def test_llama_server_takes_every_option() -> None:
    # Its help has the option; this is that it takes the value.
    model = ModelParams(
        check_tensors=True, no_host=True, tensor_split=[1.0], kv_overrides={"a": 'x, "y"', "b": True}
    ).with_cpu_moe_all()
    context = ContextParams(embeddings=True, pooling_type=PoolingType.MEAN, rope_scaling_type=RopeScalingType.LINEAR)
    line = command_line(arguments.settings(model, context, HOST))
    command = [program(), *line, "--model", "/no/such/model.gguf", "--fit", "off", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "failed to load model" in done.stderr
    assert "error: " not in done.stderr
