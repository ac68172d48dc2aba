"""Parameters as llama.cpp takes them, and what does not go together."""

from __future__ import annotations

from moebind._core.native import CData, Hooks, ffi, lib
from moebind.backend.devices import for_tensor_split, native_device
from moebind.enums import ContextType, FlashAttnType, LoadMode, SplitMode
from moebind.errors import ContextCreationError
from moebind.files.metadata_overrides import native_kv_overrides
from moebind.params import tensor_overrides
from moebind.params.params import N_CTX_MAX, ContextParams, ModelParams


def native_model_params(
    params: ModelParams, rules: tensor_overrides.Resolved, hooks: Hooks
) -> tuple[CData, list[object]]:
    """``llama_model_params`` from ours, and what they point to."""
    native = ffi.new("struct llama_model_params *", lib.llama_model_default_params())
    _set_plain_fields(native, params)
    if params.no_alloc:
        native.load_mode = LoadMode.NONE  # nothing is there to be mapped
    keep: list[object] = [rules, hooks]
    if params.tensor_overrides:
        native.tensor_buft_overrides = rules.native
    chosen = None if params.devices is None else [native_device(device.name) for device in params.devices]
    if chosen is None and params.split_mode == SplitMode.TENSOR:
        chosen = for_tensor_split() or None
    if chosen is not None:
        native.devices = devices = ffi.new("ggml_backend_dev_t[]", [*chosen, ffi.NULL])
        keep.append(devices)
    if params.tensor_split is not None:
        # libllama reads as many as there can be devices.
        native.tensor_split = split = ffi.new("float[]", lib.llama_max_devices())
        split[0 : len(params.tensor_split)] = params.tensor_split
        keep.append(split)
    if params.kv_overrides:
        native.kv_overrides = entries = native_kv_overrides(params.kv_overrides)
        keep.append(entries)
    lib.moebind_hooks_into_model_params(hooks.pointer, native)
    return native, keep


def check_together(params: ContextParams, n_ctx: int, model: CData) -> None:
    """Parameters that do not go together, or not with a model.

    Raises
    ------
    ContextCreationError
    """
    if n_ctx > N_CTX_MAX:
        raise ContextCreationError(f"n_ctx is 0, for the model's own {n_ctx}; at most {N_CTX_MAX} are taken")
    outputs = params.n_outputs_max or min(n_ctx, params.n_batch)
    if params.n_seq_max > outputs:
        raise ContextCreationError(
            f"n_seq_max is {params.n_seq_max}, but a batch has at most {outputs} outputs: raise n_batch, n_ctx or "
            "n_outputs_max"
        )
    block = lib.ggml_blck_size(params.type_k)
    width = lib.moebind_model_odd_key(model, block) if params.flash_attn_type == FlashAttnType.DISABLED else 0
    if width:
        raise ContextCreationError(
            f"type_k is {params.type_k.name}, in blocks of {block}, but this model's keys have {width} "
            "numbers: choose another type_k, or leave flash attention on"
        )


def check_layers(model: CData, params: ContextParams) -> None:
    """Whether the layers that a context computes were loaded; some models have others that predict further ahead (MTP).

    Raises
    ------
    ContextCreationError
    """
    if not lib.llama_model_n_layer_nextn(model):
        return
    count = lib.moebind_model_tensors(model, ffi.NULL, 0)
    tensors = ffi.new("struct moebind_tensor[]", count)
    lib.moebind_model_tensors(model, tensors, count)
    ahead = params.ctx_type == ContextType.MTP
    prefix = f"blk.{lib.llama_model_n_layer(model) if ahead else 0}.".encode()
    if any(ffi.string(tensor.name).startswith(prefix) for tensor in tensors):
        return
    if ahead:
        raise ContextCreationError(
            "ctx_type is MTP, but the layers that predict further ahead were not loaded: load the model with load_mtp"
        )
    raise ContextCreationError(
        "the file has only layers that predict further ahead (MTP), to draft for the model that they belong to: give "
        "that model's own file, and this one as its draft (draft=, or --model-draft on a command line); a context of "
        "these layers alone takes ctx_type MTP, and load_mtp"
    )


def plain_context_params(params: ContextParams) -> CData:
    """``llama_context_params`` with its plain fields; callbacks go through ``Hooks``."""
    native = ffi.new("struct llama_context_params *", lib.llama_context_default_params())
    _set_plain_fields(native, params)
    return native


def _set_plain_fields(native: CData, params: ModelParams | ContextParams) -> None:
    """Set each field of the struct that is a number, a flag or an enum; what it points to, callers see to."""
    declared = params.__dataclass_fields__
    for name, field in ffi.typeof(native).item.fields:
        if field.type.kind in {"primitive", "enum"} and name in declared:
            setattr(native, name, getattr(params, name))
