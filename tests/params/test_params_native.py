"""Parameters as libllama takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from moebind import (
    ContextCreationError,
    ContextParams,
    Device,
    FlashAttnType,
    GgmlType,
    LazyMode,
    LoadMode,
    ModelParams,
    SplitMode,
    ffi,
    lib,
)
from moebind._core.native import CData, Hooks
from moebind.params.native import check_together, native_model_params, plain_context_params
from moebind.params.params import N_CTX_MAX
from moebind.params.tensor_overrides import resolve

#: Tensors that overrides can match.
NAMES = ["token_embd.weight", "blk.0.ffn_up_exps.weight"]


def native(params: ModelParams) -> tuple[CData, list[object]]:
    return native_model_params(params, resolve(params.tensor_overrides, NAMES, "m.gguf"), Hooks())


def same_in_both(params: object, struct: CData, kind: str) -> Iterator[str]:
    """The fields that have the same value, among those that are numbers in both."""
    for name, _ in ffi.typeof(f"struct {kind}").fields:
        value, theirs = getattr(params, name, None), getattr(struct, name)
        if isinstance(value, (bool, int, float)) and isinstance(theirs, (bool, int, float)):
            assert theirs == pytest.approx(value), name
            yield name


def test_every_number_of_a_model_is_carried() -> None:
    params = ModelParams(
        n_gpu_layers=3,
        split_mode=SplitMode.ROW,
        load_mode=LoadMode.MLOCK,
        lazy_mode=LazyMode(1),
        main_gpu=2,
        vocab_only=True,
        check_tensors=True,
        use_extra_bufts=False,
        no_host=True,
        load_mtp=not ModelParams().load_mtp,
    )
    struct, _ = native(params)
    names = set(same_in_both(params, struct, "llama_model_params"))
    numbers = {
        field.name for field in dataclasses.fields(params) if isinstance(getattr(params, field.name), (bool, int))
    }
    assert names == numbers
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


def test_every_number_of_a_context_is_carried() -> None:
    params = ContextParams(
        n_ctx=1024,
        n_batch=77,
        n_ubatch=33,
        n_seq_max=3,
        n_threads=5,
        n_threads_batch=6,
        type_k=GgmlType.Q8_0,
        type_v=GgmlType.F32,
        flash_attn_type=FlashAttnType.ENABLED,
        rope_freq_base=5.5,
        embeddings=True,
        offload_kqv=False,
        op_offload=False,
        kv_unified=True,
        swa_full=False,
    )
    struct = plain_context_params(params)
    names = set(same_in_both(params, struct, "llama_context_params"))
    numbers = {
        field.name
        for field in dataclasses.fields(params)
        if isinstance(getattr(params, field.name), (bool, int, float))
    }
    assert names == numbers


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
            "type_k is Q4_0, in blocks of 32, but this model's keys have 80 numbers",
        ),
    ],
)
def test_values_that_do_not_go_together(params: ContextParams, n_ctx: int, message: str) -> None:
    with pytest.raises(ContextCreationError, match=message):
        check_together(params, n_ctx, 80)


@pytest.mark.parametrize(
    ("params", "n_ctx", "n_embd_head_k"),
    [
        (ContextParams(n_ctx=0), N_CTX_MAX, 80),
        (ContextParams(n_seq_max=32, n_batch=32), 512, 80),
        (ContextParams(n_seq_max=4, n_outputs_max=4), 512, 80),
        (ContextParams(type_k=GgmlType.Q4_0, flash_attn_type=FlashAttnType.DISABLED), 512, 64),
        (ContextParams(type_k=GgmlType.Q4_0), 512, 80),
    ],
)
def test_values_that_just_go_together(params: ContextParams, n_ctx: int, n_embd_head_k: int) -> None:
    check_together(params, n_ctx, n_embd_head_k)
