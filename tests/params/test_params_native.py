"""Parameters as libllama takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

import pytest

from conftest import CPU
from moebind import (
    ContextCreationError,
    ContextParams,
    Device,
    FlashAttnType,
    GgmlType,
    LoadMode,
    Model,
    ModelParams,
    ffi,
    lib,
)
from moebind._core.native import CData, Hooks
from moebind.params.native import check_together, native_model_params, plain_context_params
from moebind.params.params import N_CTX_MAX, Params
from moebind.params.tensor_overrides import resolve

MakeTiny = Callable[..., Path]

#: Tensors that overrides can match.
NAMES = ["token_embd.weight", "blk.0.ffn_up_exps.weight"]
BOTH = [(ModelParams, "llama_model_params"), (ContextParams, "llama_context_params")]


def native(params: ModelParams) -> tuple[CData, list[object]]:
    return native_model_params(params, resolve(params.tensor_overrides, NAMES, "m.gguf"), Hooks())


def test_what_is_not_said_points_nowhere() -> None:
    struct, _ = native(ModelParams())
    assert (struct.devices, struct.tensor_split, struct.kv_overrides) == (ffi.NULL,) * 3
    assert struct.tensor_buft_overrides == ffi.NULL


def test_lists_of_a_model_end_and_live_as_long_as_they_are_kept(device: Device) -> None:
    params = (
        ModelParams(devices=[device], tensor_split=[3, 1]).with_kv_override("a.b", 5).with_cpu_override("ffn_up_exps")
    )
    struct, keep = native(params)
    assert keep
    assert ffi.string(lib.ggml_backend_dev_name(struct.devices[0])).decode() == device.name
    assert struct.devices[1] == ffi.NULL
    shares = [struct.tensor_split[at] for at in range(lib.llama_max_devices())]
    assert shares == [3.0, 1.0] + [0.0] * (lib.llama_max_devices() - 2)
    assert ffi.string(struct.kv_overrides[0].key) == b"a.b"
    assert struct.kv_overrides[0].val_i64 == 5
    assert ffi.string(struct.kv_overrides[1].key) == b""
    assert ffi.string(struct.tensor_buft_overrides[0].pattern) == b"ffn_up_exps"
    assert struct.tensor_buft_overrides[1].pattern == ffi.NULL


def test_no_devices_are_not_all_devices() -> None:
    struct, _ = native(ModelParams(devices=()))
    assert struct.devices != ffi.NULL
    assert struct.devices[0] == ffi.NULL


def test_nothing_is_mapped_where_nothing_is_there() -> None:
    struct, _ = native(ModelParams(no_alloc=True, load_mode=LoadMode.MMAP))
    assert struct.load_mode == LoadMode.NONE


def test_a_device_that_has_gone() -> None:
    gone = Device(9, "GPU9", "", "", lib.GGML_BACKEND_DEVICE_TYPE_GPU, 1, 1, 1)
    with pytest.raises(ValueError, match="GPU9"):
        native(ModelParams(devices=[gone]))  # type: ignore[arg-type]


def test_callbacks_of_a_context_are_not_carried_as_numbers() -> None:
    struct = plain_context_params(ContextParams(abort_callback=lambda: True))
    assert struct.abort_callback == ffi.NULL


@pytest.mark.parametrize(
    ("params", "n_ctx", "message"),
    [
        (
            ContextParams(n_ctx=0),
            N_CTX_MAX + 1,
            f"n_ctx is 0, for the model's own {N_CTX_MAX + 1}; at most {N_CTX_MAX}",
        ),
        (ContextParams(n_seq_max=33, n_batch=32), 512, "n_seq_max is 33, but a batch has at most 32 outputs"),
        (ContextParams(n_seq_max=33), 32, "at most 32 outputs"),
        (ContextParams(n_seq_max=4, n_outputs_max=3), 512, "at most 3 outputs"),
        (
            ContextParams(type_k=GgmlType.Q4_0, flash_attn_type=FlashAttnType.DISABLED),
            512,
            "type_k is Q4_0, in blocks of 32, but this model's keys have 16 numbers",
        ),
    ],
)
def test_values_that_do_not_go_together(tiny_path: MakeTiny, params: ContextParams, n_ctx: int, message: str) -> None:
    with Model.load_from_file(tiny_path(n_head=4), CPU) as model:
        with pytest.raises(ContextCreationError, match=message):
            check_together(params, n_ctx, model._open())


@pytest.mark.parametrize(
    ("params", "n_ctx", "n_head"),
    [
        (ContextParams(n_ctx=0), N_CTX_MAX, 4),
        (ContextParams(n_seq_max=32, n_batch=32), 512, 4),
        (ContextParams(n_seq_max=4, n_outputs_max=4), 512, 4),
        (ContextParams(type_k=GgmlType.Q4_0, flash_attn_type=FlashAttnType.DISABLED), 512, 2),
        (ContextParams(type_k=GgmlType.Q4_0), 512, 4),
    ],
)
def test_values_that_just_go_together(tiny_path: MakeTiny, params: ContextParams, n_ctx: int, n_head: int) -> None:
    with Model.load_from_file(tiny_path(n_head=n_head), CPU) as model:  # 64 numbers for all heads
        check_together(params, n_ctx, model._open())


def another(field: dataclasses.Field[object]) -> object:
    """A value that a plain field does not have by default."""
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, IntEnum):
        return next(each for each in reversed(type(field.default)) if allowed(field, each) and each != field.default)
    return next(each for each in (3, 0.25, 7, 2**20) if allowed(field, each) and each != field.default)


def allowed(field: dataclasses.Field[object], value: object) -> bool:
    try:
        field.metadata["check"](field.name, value)
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize(("kind", "struct"), BOTH)
def test_every_plain_field_arrives(kind: type[Params], struct: str) -> None:
    declared = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    plain = [
        name
        for name, field in ffi.typeof(f"struct {struct}").fields
        if field.type.kind in {"primitive", "enum"} and name in declared
    ]
    assert len(plain) > 10
    for name in plain:
        value = another(declared[name])
        params = kind(**{name: value})
        if isinstance(params, ModelParams):
            native, _ = native_model_params(params, resolve((), [], ""), Hooks())
        else:
            native = plain_context_params(params)
        assert getattr(native, name) == pytest.approx(value), name
