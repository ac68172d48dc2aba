"""ModelParams and ContextParams."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebind import (
    ContextParams,
    Device,
    DeviceType,
    FlashAttnType,
    GgmlType,
    LoadMode,
    ModelParams,
    PoolingType,
    RoutingRecorder,
    SplitMode,
    TensorOverride,
    devices,
    ffi,
    lib,
)
from moebind.files.tensor_patterns import experts_pattern, matching
from moebind.params.params import Params

ROOT = Path(__file__).resolve().parents[2]
#: Fields of the structs that have another form here, or belong to the call that makes the object.
ELSEWHERE = {
    "tensor_buft_overrides": "tensor_overrides",
    "progress_callback_user_data": "progress_callback",
    "cb_eval": "eval_callback",
    "cb_eval_user_data": "eval_callback",
    "abort_callback_data": "abort_callback",
    "samplers": None,
    "n_samplers": None,
    "ctx_other": None,
}
BOTH = [(ModelParams, "llama_model_params"), (ContextParams, "llama_context_params")]


@pytest.mark.parametrize(("kind", "struct"), BOTH)
def test_every_field_of_the_struct_is_there(kind: type[Params], struct: str) -> None:
    native = {ELSEWHERE.get(name, name) for name, _ in ffi.typeof(f"struct {struct}").fields} - {None}
    declared = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    assert declared == native
    for name in declared:
        assert callable(getattr(kind, f"with_{name}"))
        assert getattr(kind, f"with_{name}").__doc__


def test_methods_are_generated_from_the_fields() -> None:
    subprocess.run([sys.executable, ROOT / "tools/params_methods.py", "--check"], check=True)


@pytest.mark.parametrize(("kind", "struct"), BOTH)
def test_defaults_are_those_of_llama_cpp(kind: type[Params], struct: str) -> None:
    native = getattr(lib, struct.replace("_params", "_default_params"))()
    own_defaults = {"n_threads", "n_threads_batch", "no_perf"}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = getattr(native, field.name, None)
        if isinstance(value, (int, float)) and field.name not in own_defaults:
            assert getattr(kind(), field.name) == value, field.name


def test_keywords_and_methods_are_the_same() -> None:
    assert ModelParams(n_gpu_layers=-1) == ModelParams().with_n_gpu_layers(-1)
    assert ContextParams(n_ctx=4096) == ContextParams().with_n_ctx(4096) != ContextParams()
    assert hash(ContextParams(n_ctx=4096)) == hash(ContextParams().with_n_ctx(4096))
    assert hash(ModelParams().with_kv_override("a", 1)) != hash(ModelParams().with_kv_override("a", True))


def test_methods_leave_the_original_alone() -> None:
    original = ContextParams()
    changed = original.with_n_ctx(1024).with_type_k(GgmlType.Q8_0)
    assert (original.n_ctx, original.type_k) == (512, GgmlType.F16)
    assert (changed.n_ctx, changed.type_k) == (1024, GgmlType.Q8_0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.n_ctx = 2  # type: ignore[misc]


def test_printing_tells_what_differs() -> None:
    assert repr(ContextParams()) == "ContextParams()"
    assert repr(ContextParams(n_ctx=1024, embeddings=True)) == "ContextParams(n_ctx=1024, embeddings=True)"
    assert repr(ModelParams(n_gpu_layers=3)) == "ModelParams(n_gpu_layers=3)"


@pytest.mark.parametrize(
    ("field", "bad", "error"),
    [
        ("n_ctx", -1, ValueError),
        ("n_ctx", 2**27 + 1, ValueError),
        ("n_ctx", 1.5, TypeError),
        ("n_ctx", "512", TypeError),
        ("n_ctx", True, TypeError),
        ("n_batch", 0, ValueError),
        ("n_seq_max", 257, ValueError),
        ("n_threads", 0, ValueError),
        ("n_threads", 513, ValueError),
        ("type_k", 4, ValueError),
        ("type_k", GgmlType.Q8_1, ValueError),
        ("type_k", "f16", TypeError),
        ("type_k", PoolingType.MEAN, TypeError),
        ("type_v", 99, ValueError),
        ("pooling_type", 17, ValueError),
        ("flash_attn_type", 5, ValueError),
        ("rope_freq_base", float("nan"), ValueError),
        ("rope_freq_base", -1.0, ValueError),
        ("yarn_ext_factor", float("inf"), ValueError),
        ("yarn_ext_factor", "1", TypeError),
        ("embeddings", 1, TypeError),
        ("eval_callback", 3, TypeError),
        ("abort_callback", "x", TypeError),
    ],
)
def test_bad_context_values(field: str, bad: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=field):
        ContextParams(**{field: bad})
    with pytest.raises(error, match=field):
        getattr(ContextParams(), f"with_{field}")(bad)


@pytest.mark.parametrize(
    ("field", "bad", "error"),
    [
        ("n_gpu_layers", -2, ValueError),
        ("n_gpu_layers", None, TypeError),
        ("split_mode", 9, ValueError),
        ("load_mode", 5, ValueError),
        ("main_gpu", -1, ValueError),
        ("tensor_split", [], ValueError),
        ("tensor_split", [-1.0], ValueError),
        ("tensor_split", [float("nan")], ValueError),
        ("tensor_split", [1.0] * 99, ValueError),
        ("devices", ["CPU"], TypeError),
        ("progress_callback", 3, TypeError),
        ("kv_overrides", {"": 1}, ValueError),
        ("kv_overrides", {"k" * 128: 1}, ValueError),
        ("kv_overrides", {"k": "v" * 128}, ValueError),
        ("kv_overrides", {"k\0": 1}, ValueError),
        ("kv_overrides", {"k": 2**63}, ValueError),
        ("kv_overrides", {"k": None}, TypeError),
        ("tensor_overrides", ["x"], TypeError),
        ("vocab_only", "yes", TypeError),
    ],
)
def test_bad_model_values(field: str, bad: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        ModelParams(**{field: bad})


def test_devices_must_differ_and_take_layers() -> None:
    gpu = Device(1, "GPU0", "", "", DeviceType.GPU, 1, 1, 1)
    assert ModelParams(devices=[gpu]).devices == (gpu,)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="twice"):
        ModelParams(devices=[gpu, gpu])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds the CPU"):
        ModelParams(devices=[devices()[0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 15"):
        ModelParams(devices=[dataclasses.replace(gpu, name=str(n)) for n in range(16)])  # type: ignore[arg-type]


def test_numpy_numbers_are_numbers() -> None:
    params = ContextParams(n_ctx=np.int64(1024), rope_freq_base=np.float32(10000.0), embeddings=np.bool_(True))  # type: ignore[arg-type]
    assert params == ContextParams(n_ctx=1024, rope_freq_base=10000.0, embeddings=True)
    assert type(params.n_ctx) is int


def test_numbers_of_enums_are_taken() -> None:
    assert ContextParams(flash_attn_type=1).flash_attn_type is FlashAttnType.ENABLED  # type: ignore[arg-type]
    assert ModelParams(split_mode=0).split_mode is SplitMode.NONE  # type: ignore[arg-type]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("mlock", [True, False])
def test_mmap_and_mlock_are_load_modes(mmap: bool, mlock: bool) -> None:
    names = {(True, True): "MMAP_MLOCK", (True, False): "MMAP", (False, True): "MLOCK", (False, False): "NONE"}
    params = ModelParams().with_use_mmap(mmap).with_use_mlock(mlock)
    assert params.load_mode is LoadMode[names[mmap, mlock]]
    assert (params.use_mmap, params.use_mlock) == (mmap, mlock)
    assert ModelParams().with_use_mlock(mlock).with_use_mmap(mmap) == params


def test_cpu_moe_all_uses_llama_cpps_pattern() -> None:
    (override,) = ModelParams().with_cpu_moe_all().tensor_overrides
    assert override == TensorOverride(experts_pattern(), "CPU")
    names = [
        f"blk.3.ffn_{part}_{kind}.weight" for part in ("up", "down", "gate", "gate_up") for kind in ("exps", "chexps")
    ]
    others = ["blk.3.ffn_gate_inp.weight", "blk.3.ffn_up.weight", "blk.3.ffn_up_shexp.weight", "output.weight"]
    assert matching(override.pattern, names + others) == names


@given(st.integers(1, 200))
def test_n_cpu_moe_matches_the_first_layers(n_layers: int) -> None:
    (override,) = ModelParams().with_n_cpu_moe(n_layers).tensor_overrides
    names = [f"blk.{layer}.ffn_up_exps.weight" for layer in range(256)]
    assert matching(override.pattern, names) == names[:n_layers]


def test_n_cpu_moe_of_no_layers_changes_nothing() -> None:
    assert ModelParams().with_n_cpu_moe(0) == ModelParams()
    with pytest.raises(ValueError, match="n_layers"):
        ModelParams().with_n_cpu_moe(-1)


def test_overrides_add_up_in_order() -> None:
    params = ModelParams().with_cpu_override("a").with_tensor_override("b", "RPC0").with_cpu_moe_all(strict=False)
    assert [(each.pattern, each.target, each.strict) for each in params.tensor_overrides] == [
        ("a", "CPU", True),
        ("b", "RPC0", True),
        (experts_pattern(), "CPU", False),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"devices": "CUDA0"}, "devices is 'CUDA0'; it takes a list: [each for each in moebind.devices() if each"),
        ({"devices": ["CUDA0"]}, "devices holds 'CUDA0'; it takes devices: [each for each in moebind.devices() if"),
        ({"devices": ["loopback"]}, "it takes devices: with moebind.loopback_device() as device: ModelParams(devices="),
        ({"devices": "loopback"}, "it takes a list: with moebind.loopback_device() as device: ModelParams(devices="),
        ({"devices": ["cpu"]}, "devices holds 'cpu'; it takes devices: [] keeps everything on the CPU"),
        ({"devices": ["12GiB"]}, "a device that is only described can be planned for, fit(path, devices=[...])"),
        ({"devices": ["vulkan:1.5 GB"]}, "a device that is only described can be planned for"),
        ({"devices": 3}, "devices is 3 (int); it takes a list of devices"),
        ({"tensor_split": 0.5}, "tensor_split is 0.5 (float); it takes a list of shares, one per device, such as"),
        ({"tensor_split": "3,1"}, "tensor_split is '3,1' (str); it takes a list of shares"),
        ({"tensor_overrides": "a=CPU"}, "it takes a list of TensorOverride objects; or use with_tensor_override"),
        ({"kv_overrides": 3}, "kv_overrides is 3 (int); it takes a mapping"),
        ({"n_gpu_layers": "all"}, "n_gpu_layers is 'all'; it takes an integer, -1 for all"),
        ({"split_mode": "row"}, "it takes a member of SplitMode: SplitMode.ROW"),
    ],
)
def test_what_is_nearly_right_is_told_how(given: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)):
        ModelParams(**given)


def test_the_class_of_an_eval_callback_is_none() -> None:
    with pytest.raises(TypeError, match=r"eval_callback is the class RoutingRecorder; .*: RoutingRecorder\(\.\.\.\)"):
        ContextParams(eval_callback=RoutingRecorder)
