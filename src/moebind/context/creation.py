"""Making a context: its parameters as llama.cpp takes them, after the checks that need the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moebind._core.context_base import ContextBase
from moebind._core.native import CData, ffi, lib
from moebind.backend.devices import devices
from moebind.enums import PoolingType
from moebind.errors import ContextCreationError
from moebind.params.native import check_layers, check_together, plain_context_params
from moebind.params.params import ContextParams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moebind.model.hyperparameters import Hyperparameters
    from moebind.sampling.sampler import Sampler

__all__ = ["native_context_params", "pooling_problem"]


def native_context_params(
    model: Hyperparameters,
    params: ContextParams,
    chains: Mapping[int, Sampler] | None = None,
    ctx_other: ContextBase | None = None,
) -> tuple[CData, list[object]]:
    """``llama_context_params`` from ours, after the checks that need the model, and what they point to."""
    if not isinstance(params, ContextParams):
        raise TypeError(f"params is {params!r}; it takes ContextParams")
    if model._without_weights == "vocab_only":
        raise ContextCreationError("the model was loaded with vocab_only: it has no weights for a context")
    n_ctx = params.n_ctx or model.n_ctx_train
    check_together(params, n_ctx, model._n_embd_head_k)
    check_layers(model._open(), params)
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
        native.ctx_other = other = _native_other(model, ctx_other)
        keep.append(other)
    return native, keep


def pooling_problem(model: Hyperparameters, params: ContextParams) -> str | None:
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


def _check_kind(model: Hyperparameters, params: ContextParams) -> None:
    """Refuse what this kind of model cannot do, where libllama notices too late or not at all."""
    problem = pooling_problem(model, params) if params.embeddings else None
    if problem is not None:
        raise ContextCreationError(problem)
    if model._architecture != "t5":
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


def _native_other(model: Hyperparameters, other: ContextBase) -> CData:
    """``ctx_other``, which the draft models that use it take for one of the model that they were trained for."""
    pointer = other._open()
    arch = model._architecture
    if arch == "gemma4-assistant":
        theirs = other._model._architecture
        if theirs != "gemma4":
            raise ContextCreationError(f"ctx_other has a model of architecture {theirs}; {arch} takes one of gemma4")
        if not lib.llama_get_memory(pointer):
            raise ContextCreationError("ctx_other has no memory to share")
    if arch in {"gemma4-assistant", "eagle3", "dflash"} and other._model.n_vocab < model.n_vocab:
        raise ContextCreationError(
            f"ctx_other has a vocabulary of {other._model.n_vocab}, smaller than this model's {model.n_vocab}: give it "
            "a context of the model that this one drafts for"
        )
    return pointer


def _check_cache_size(model: Hyperparameters, params: ContextParams, n_ctx: int) -> None:
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
