"""Parameters as llama.cpp takes them, after the checks that need the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moebind._core.native import CData, Hooks, ffi, lib
from moebind.backend.devices import devices, native_device
from moebind.enums import FlashAttnType, LoadMode, PoolingType
from moebind.errors import ContextCreationError
from moebind.params import tensor_overrides
from moebind.params.params import N_CTX_MAX, ContextParams, KvOverrides, ModelParams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moebind.context.context import Context
    from moebind.model.model import Model
    from moebind.sampling.sampler import Sampler


def native_model_params(
    params: ModelParams, rules: tensor_overrides.Resolved, hooks: Hooks
) -> tuple[CData, list[object]]:
    """``llama_model_params`` from ours, and what they point to."""
    native = ffi.new("struct llama_model_params *", lib.llama_model_default_params())
    for name in [
        "n_gpu_layers",
        "split_mode",
        "load_mode",
        "lazy_mode",
        "main_gpu",
        "vocab_only",
        "check_tensors",
        "use_extra_bufts",
        "no_host",
        "no_alloc",
        "load_mtp",
    ]:
        setattr(native, name, getattr(params, name))
    if params.no_alloc:
        native.load_mode = LoadMode.NONE  # nothing is there to be mapped
    keep: list[object] = [rules, hooks]
    if params.tensor_overrides:
        native.tensor_buft_overrides = rules.native
    if params.devices is not None:
        chosen = [native_device(device.name) for device in params.devices]
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


def native_kv_overrides(overrides: KvOverrides) -> CData:
    """An array of ``llama_model_kv_override``, with the empty key that ends it."""
    entries = ffi.new("struct llama_model_kv_override[]", len(overrides) + 1)
    for entry, (key, value) in zip(entries, overrides.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, bool):
            entry.tag, entry.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, int):
            entry.tag, entry.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
        elif isinstance(value, float):
            entry.tag, entry.val_f64 = lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
        else:
            entry.tag, entry.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    return entries


def check_together(params: ContextParams, n_ctx: int, n_embd_head_k: int) -> None:
    """Parameters that do not go together, or not with a model whose keys have so many numbers.

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
    if params.flash_attn_type == FlashAttnType.DISABLED and n_embd_head_k % block:
        raise ContextCreationError(
            f"type_k is {params.type_k.name}, in blocks of {block}, but this model's keys have {n_embd_head_k} "
            "numbers: choose another type_k, or leave flash attention on"
        )


def plain_context_params(params: ContextParams) -> CData:
    """``llama_context_params`` with what is a number; callbacks go through ``Hooks``."""
    native = ffi.new("struct llama_context_params *", lib.llama_context_default_params())
    for name, _ in ffi.typeof("struct llama_context_params").fields:
        value: Any = getattr(params, name, None)
        if value is not None and not callable(value):
            setattr(native, name, value)
    return native


def native_context_params(
    model: Model,
    params: ContextParams,
    chains: Mapping[int, Sampler] | None = None,
    ctx_other: Context | None = None,
) -> tuple[CData, list[object]]:
    """``llama_context_params`` from ours, after the checks that need the model, and what they point to."""
    if not isinstance(params, ContextParams):
        raise TypeError(f"params is {params!r}; it takes ContextParams")
    if model.params.vocab_only:
        raise ContextCreationError("the model was loaded with vocab_only: it has no weights for a context")
    n_ctx = params.n_ctx or model.n_ctx_train
    check_together(params, n_ctx, model._n_embd_head_k)
    _check_cache_size(model, params, n_ctx)
    _check_kind(model, params)
    native = plain_context_params(params)
    keep: list[object] = []
    if chains:
        native.samplers = configs = ffi.new("struct llama_sampler_seq_config[]", len(chains))
        native.n_samplers = len(chains)
        for config, (seq, chain) in zip(configs, chains.items(), strict=True):
            config.seq_id, config.sampler = seq, chain._open()
        keep.append(configs)
    if ctx_other is not None:
        native.ctx_other = other = _other(model, ctx_other)
        keep.append(other)
    return native, keep


def pooling_problem(model: Model, params: ContextParams) -> str | None:
    """Why a context with these parameters cannot pool embeddings."""
    pooling = params.pooling_type
    if pooling == PoolingType.UNSPECIFIED:
        pooling = model._own_pooling()
    if pooling == PoolingType.RANK and not lib.moebind_model_n_scores(model._open()):
        return "pooling_type is RANK, but this model has no classification head to score with"
    # For means, llama.cpp plans with this many tokens, as many for each sequence.
    n_ctx = -(-(params.n_ctx or model.n_ctx_train) // 256) * 256
    n_tokens = min(n_ctx, params.n_batch, params.n_ubatch)
    if pooling != PoolingType.MEAN or (
        n_tokens % params.n_seq_max == 0 and (params.n_outputs_max or n_tokens) >= n_tokens
    ):
        return None
    return (
        f"n_ubatch is {n_tokens} and n_seq_max is {params.n_seq_max}: pooling by MEAN takes an n_ubatch that is a "
        "multiple of n_seq_max, and not more than n_outputs_max"
    )


def _check_kind(model: Model, params: ContextParams) -> None:
    """What some kinds of models cannot do, and libllama notices too late or not at all."""
    problem = pooling_problem(model, params) if params.embeddings else None
    if problem is not None:
        raise ContextCreationError(problem)
    if model.meta.get("general.architecture") != "t5":
        return
    if params.n_seq_max > 1 and not params.kv_unified:
        raise ContextCreationError(
            f"n_seq_max is {params.n_seq_max}: an encoder-decoder model takes kv_unified=True for several sequences"
        )
    if params.pooling_type not in {PoolingType.UNSPECIFIED, PoolingType.NONE}:
        raise ContextCreationError(
            f"pooling_type is {params.pooling_type.name}: the decoder of an encoder-decoder model needs the encoder's "
            "embeddings of all tokens; use NONE"
        )


def _other(model: Model, other: Context) -> CData:
    """``ctx_other``, which the draft models that use it take for one of the model that they were trained for."""
    pointer = other._open()
    arch = model.meta.get("general.architecture", "")
    if arch == "gemma4-assistant":
        theirs = other.model.meta.get("general.architecture", "")
        if theirs != "gemma4":
            raise ContextCreationError(f"ctx_other has a model of architecture {theirs}; {arch} takes one of gemma4")
        if not lib.llama_get_memory(pointer):
            raise ContextCreationError("ctx_other has no memory to share")
    if arch in {"gemma4-assistant", "eagle3", "dflash"} and other.model.n_vocab < model.n_vocab:
        raise ContextCreationError(
            f"ctx_other has a vocabulary of {other.model.n_vocab}, smaller than this model's {model.n_vocab}: give it "
            "a context of the model that this one drafts for"
        )
    return pointer


def _check_cache_size(model: Model, params: ContextParams, n_ctx: int) -> None:
    """Refuse a cache that no memory of this machine could hold: the system would rather kill the process."""
    if model.is_recurrent or model.is_hybrid:
        return
    heads = model.n_head_kv * model.n_layer * model._n_embd_head_k
    size = sum(lib.ggml_row_size(kind, 256) / 256 for kind in (params.type_k, params.type_v)) * heads * n_ctx
    most = sum({(device.backend, device.description): device.memory_total for device in devices()}.values())
    if size > most:
        raise ContextCreationError(
            f"n_ctx is {n_ctx}: its KV cache would take {size / 2**30:.1f} GiB, all devices together have "
            f"{most / 2**30:.1f} GiB; ask for less, or for smaller cache types"
        )
