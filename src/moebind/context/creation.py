"""Making a context: its parameters as llama.cpp takes them, after the checks that need the model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moebind._core import log
from moebind._core.context_base import ContextBase
from moebind._core.native import CData, ffi, lib, own
from moebind._core.shown import shown
from moebind._core.sizes import show_size
from moebind.backend.breakdown import HOST, DeviceMemory, read_breakdown
from moebind.backend.host_memory import host_memory
from moebind.context.moe_cache import check_moe_cache
from moebind.enums import PoolingType
from moebind.errors import ContextCreationError, NativeError
from moebind.files.architecture_facts import ENCODER_DECODER, USE_OTHER_CONTEXT
from moebind.params.native import check_layers, check_together, plain_context_params
from moebind.params.params import ContextParams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moebind.model.hyperparameters import Hyperparameters
    from moebind.sampling.sampler import Sampler

__all__ = ["check_memory", "native_context_params", "pooling_problem"]

#: A cache of fewer bytes, or a state of fewer sequences, is not counted before it is made.
COUNTED_MIN, COUNTED_STREAMS_MIN = 2**30, 16
#: So many tokens are counted; what more of them take follows.
EXTRAPOLATED_MIN = 2**20


def native_context_params(
    model: Hyperparameters,
    params: ContextParams,
    chains: Mapping[int, Sampler] | None = None,
    ctx_other: ContextBase | None = None,
) -> tuple[CData, list[object]]:
    """``llama_context_params`` from ours, after the checks that need the model, and what they point to."""
    if not isinstance(params, ContextParams):
        raise TypeError(f"params is {shown(params)}; it takes ContextParams")
    if model._without_weights == "vocab_only":
        raise ContextCreationError("the model was loaded with vocab_only: it has no weights for a context")
    n_ctx = params.n_ctx or model.n_ctx_train
    check_together(params, n_ctx, model._open())
    check_layers(model._open(), params)
    _check_kind(model, params)
    if params.moe_cache_size:
        check_moe_cache(model._open(), model.path, params.moe_cache_size)
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
    if model._architecture not in ENCODER_DECODER:
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
    if arch in USE_OTHER_CONTEXT and other._model.n_vocab < model.n_vocab:
        raise ContextCreationError(
            f"ctx_other has a vocabulary of {other._model.n_vocab}, smaller than this model's {model.n_vocab}: give it "
            "a context of the model that this one drafts for"
        )
    return pointer


def check_memory(model: Hyperparameters, params: ContextParams, native: CData) -> None:
    """Refuse a cache that no memory of this machine could hold: the system would rather kill the process.

    llama.cpp makes the context once without memory, and says how large each device's part is. That takes some
    milliseconds, so what is small anyway is not counted.
    """
    n_ctx = params.n_ctx or model.n_ctx_train
    streams = params.n_seq_max if model.is_recurrent or model.is_hybrid else 1
    # No architecture keeps more of a token than keys and values of all its heads, as wide as they are.
    most = 2 * 4 * model.n_layer * max(model.n_head * lib.moebind_model_head_width(model._open()), model.n_embd)
    if most * n_ctx < COUNTED_MIN and streams < COUNTED_STREAMS_MIN:
        return
    counted = ffi.new("struct llama_context_params *", native[0])
    counted.samplers, counted.n_samplers = ffi.NULL, 0  # a chain is taken into a context once
    held = _counted(model, counted, min(n_ctx, EXTRAPOLATED_MIN))
    if n_ctx > EXTRAPOLATED_MIN:
        # The books on so many cells are memory, too; the cells themselves grow evenly.
        half = {device.name: device.context for device in _counted(model, counted, EXTRAPOLATED_MIN // 2)}
        grown = n_ctx / EXTRAPOLATED_MIN - 1
        held = [
            replace(device, context=int(device.context + 2 * (device.context - half[device.name]) * grown))
            for device in held
        ]
    for device in held:
        swap = host_memory().swap if device.name == HOST else 0
        if device.context > device.capacity + swap:
            has = show_size(device.capacity) + (f" and {show_size(swap)} of swap" if swap else "")
            raise ContextCreationError(
                f"n_ctx is {n_ctx}: of {device.name}, which has {has}, its cache would take "
                f"{show_size(device.context)}; ask for less, or for smaller cache types"
            )


def _counted(model: Hyperparameters, native: CData, n_ctx: int) -> list[DeviceMemory]:
    """What such a context would hold; nothing, if it cannot be made: then making it says why."""
    native.n_ctx = n_ctx
    with log.quietly():
        try:
            opened = model._open()
            made = own(lib.own_moebind_context_counted, opened, native[0], holds=[opened])
        except NativeError:
            return []
        return list(read_breakdown(made).devices) if made else []
