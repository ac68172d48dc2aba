"""The cache of experts, in a device's memory, for experts that are kept in host memory.

What would stop llama.cpp is refused beforehand, and what would only make it slow is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moebind._core.caller import warn
from moebind._core.native import CData, ffi, lib
from moebind._core.sizes import show_size
from moebind.errors import ContextCreationError

if TYPE_CHECKING:
    from moebind.backend.timings import MoeCacheStats

__all__ = ["NothingToCacheError", "cached_layers", "check_moe_cache", "read_moe_cache"]


class NothingToCacheError(ContextCreationError):
    """No experts are where a cache would help. Users see a :class:`ContextCreationError`."""


def read_moe_cache(context: CData) -> MoeCacheStats | None:
    """What a context's cache counted; None if it has none. The caller holds the context."""
    counters = ffi.new("struct moebind_moe_counters *")
    if not lib.moebind_moe_cache_counters(context, counters):
        return None
    from moebind.backend.timings import (
        MoeCacheStats,
    )  # plans ask whether there can be a cache, and never for its counts

    return MoeCacheStats(counters.n_slots, counters.hits, counters.misses, counters.bytes, counters.copied)


def check_moe_cache(model: CData, path: str, size: int, *, quiet: bool = False) -> None:
    """Refuse a cache of this many bytes where llama.cpp would fail, or silently make none; warn where none of it hits.

    Parameters
    ----------
    model
        The ``llama_model``. It may be without its weights.
    path
        Its file, for messages.
    quiet
        Whether to leave out the warning.

    Raises
    ------
    NothingToCacheError
        If no experts are in host memory for a layer that a GPU computes.
    ContextCreationError
        If llama.cpp would make no cache for another reason.
    """
    if lib.moebind_model_splits_tensors(model):
        raise ContextCreationError(
            "moe_cache_size is set, but the model was loaded with split_mode TENSOR, which has no cache of experts: "
            "take SplitMode.LAYER"
        )
    layers = _layers(model)
    if not layers:
        raise NothingToCacheError(f"moe_cache_size is set, but {path} has no experts: leave it at 0")
    groups: dict[int, list[CData]] = {}
    for layer in layers:
        if layer.group >= 0:
            groups.setdefault(layer.group, []).append(layer)
    if not groups:
        raise NothingToCacheError(_nothing_to_cache(layers))
    if len({layer.device for layer in layers if layer.group >= 0}) > 1:
        return  # how it is divided depends on the free memory of each device: llama.cpp says what is too small
    least, useful = _sizes(model, list(groups.values()))
    if size < least:
        raise ContextCreationError(
            f"moe_cache_size is {show_size(size)}, which holds less than the experts of one token in one layer: it "
            f"takes at least {show_size(least)}, and {show_size(useful)} to be of use"
        )
    if size < useful and not quiet:
        warn(
            f"moe_cache_size is {show_size(size)}, which holds less than the experts of one token in all layers that "
            f"share it: it will hardly hit, and slow the model down; ask for {show_size(useful)} or more, or for 0"
        )


def cached_layers(model: CData) -> dict[int, int]:
    """The layers of which a cache would hold experts: each with the device that computes it, of the model's."""
    return {int(layer.layer): int(layer.device) for layer in _layers(model) if layer.group >= 0}


def _layers(model: CData) -> list[CData]:
    count = lib.moebind_moe_layers(model, ffi.NULL, 0)
    layers = ffi.new("struct moebind_moe_layer[]", count)
    lib.moebind_moe_layers(model, layers, count)
    # Copies, since an element does not keep its array.
    return [ffi.new("struct moebind_moe_layer *", layer) for layer in layers]


def _nothing_to_cache(layers: list[CData]) -> str:
    """Why none of the layers would be cached."""
    problem = "moe_cache_size is set, but there is nothing to cache: "
    if all(layer.device < 0 for layer in layers):
        return problem + "no layer with experts is computed by a GPU: raise n_gpu_layers, or leave the size at 0"
    # Of layers that a GPU computes, the experts are elsewhere.
    types = [layer.elsewhere for layer in layers if layer.device >= 0]
    names = sorted({bytes(ffi.string(lib.ggml_backend_buft_name(each))).decode() for each in types if each})
    if not names:
        return problem + "the model was loaded with no_alloc: it has no experts in memory"
    if any("REPACK" in name or "AMX" in name or "KLEIDIAI" in name for name in names):
        return problem + (
            f"the experts in host memory were repacked for the CPU ({', '.join(names)}): load the model with "
            "use_extra_bufts=False"
        )
    return problem + (
        f"the experts of all layers that a GPU computes are on devices ({', '.join(names)}): keep some in host memory, "
        "with ModelParams.with_cpu_moe_all() or with_n_cpu_moe()"
    )


def _sizes(model: CData, groups: list[list[CData]]) -> tuple[int, int]:
    """The least bytes that llama.cpp takes, and with which a token finds experts of the one before.

    llama.cpp gives each group its share by the bytes of its experts, and takes a cache if that is enough for one group.
    """
    n_used = lib.moebind_model_n_expert_used(model)
    everything = sum(layer.nbytes for group in groups for layer in group)
    least: list[int] = []
    useful: list[int] = []
    for group in groups:
        own = sum(layer.nbytes for layer in group)
        for sizes, slots in (least, n_used), (useful, n_used * len(group)):
            taken = lib.moebind_moe_slots_size(model, group[0].layer, slots)
            size = -(-taken * everything // own)
            # llama.cpp multiplies in floating point, and may round down.
            sizes.append(size if int(float(size) * own / everything) >= taken else size + 1)
    return min(least), max(useful)
