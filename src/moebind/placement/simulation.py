"""A load and a context without memory: llama.cpp goes through the motions, and counts.

With ``no_alloc`` it places tensors, lays out caches and graphs, and allocates nothing. That is never mapped, whereas a
load usually is; what a mapping changes is worked out here, as ``load_tensors`` in llama-model.cpp does it:

- weights in the plain memory of the CPU are not allocated: a range of each file is mapped, from the first of them to
  the last;
- weights are not put into a device's pinned host memory, but among those of the CPU;
- a tensor that is read row by row is mapped by itself, even if the rest of the file is read;
- everything else, repacked weights included, is allocated as without a mapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol

from moebind._core import log
from moebind._core.native import CData, Hooks, decoded, ffi, lib, own
from moebind.backend import rpc_servers
from moebind.backend.breakdown import BufferMemory, DeviceMemory, gather, read_parts
from moebind.backend.devices import init
from moebind.backend.host_memory import HostMemory
from moebind.context.moe_cache import cached_layers, check_moe_cache
from moebind.enums import DeviceType, LazyMode, LoadMode
from moebind.errors import ContextCreationError, ModelLoadError, NativeError, RpcServerError
from moebind.params import tensor_overrides
from moebind.params.native import check_layers, check_together, native_model_params, plain_context_params
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.draft_memory import DraftMemory
from moebind.placement.header import Header

__all__ = ["Simulation", "simulate"]

#: llama.cpp's name for the buffers of a mapped file, all of the CPU's buffer type.
MAPPED = "CPU_Mapped"
#: The tensor that llama.cpp can read row by row (TENSOR_READ_LAZY), in which architectures, and above what size if
#: ``LazyMode.AUTO`` is to decide.
LAZY = "per_layer_token_embd.weight"
LOOK_UP = frozenset({"gemma4", "qwen4exp"})
LAZY_MIN = 4 << 30


class Simulation(NamedTuple):
    """The memory that llama.cpp would use, and where.

    ``devices`` is as in a plan, without drafts. ``places`` has, for each tensor, the name of its device, or None in
    host memory; one that stands on both, as the token embeddings do when they are the output too, has the device.
    ``gaps`` are bytes of mapped ranges that hold no tensor of the host's, and are not read; ``lazy`` are bytes of
    tables that are mapped by themselves and read row by row. ``n_swa`` is the width of sliding windows, 0 without any.
    ``reads`` are the bytes of weights that a token reads on each device; None is the host. ``cached`` are the layers of
    which a cache of experts holds some, or would, and the devices that compute them. ``draft`` is what drafts.
    """

    devices: tuple[DeviceMemory, ...]
    places: dict[str, str | None]
    n_ctx: int
    n_ctx_seq: int
    n_ctx_train: int
    n_layer: int
    n_layer_nextn: int
    mapped: bool
    gaps: int
    lazy: int
    n_swa: int
    reads: dict[str | None, int]
    cached: dict[int, str]
    draft: DraftMemory | None = None


class Counts(Protocol):
    """What is to draft for a model, and can be counted beside it."""

    def count(
        self,
        model_params: ModelParams,
        context_params: ContextParams,
        context: CData,
        taken: Sequence[DeviceMemory],
        devices: Sequence[CData] | None,
        host: HostMemory | None,
    ) -> DraftMemory:
        """Count it, and have the model's context keep the hidden states that it takes."""


class Held(NamedTuple):
    """What a model and a context would hold: by device, and as in :class:`Simulation`."""

    devices: tuple[DeviceMemory, ...]
    mapped: bool
    gaps: int
    lazy: int


def simulate(
    header: Header,
    model_params: ModelParams,
    context_params: ContextParams,
    devices: Sequence[CData] | None = None,
    host: HostMemory | None = None,
    *,
    drafter: Counts | None = None,
    quiet: bool = False,
) -> Simulation:
    """Load the model and make a context, without memory.

    Parameters
    ----------
    header
        The model.
    model_params, context_params
        As for the real thing.
    devices
        Devices that need not be in the list of this machine's, instead of those of ``model_params``.
    host
        The memory of a host that need not be this machine; None: this machine's.
    drafter
        What drafts for it.
    quiet
        Whether to leave out warnings.

    Raises
    ------
    ModelLoadError, ContextCreationError, ValueError
        As for the real thing.
    """
    init()
    # What llama.cpp says when it fails is in the exception.
    with log.quietly(), watched(header, model_params, devices):
        model = load(header, model_params, devices)
        if context_params.moe_cache_size:
            check_moe_cache(model, header.paths[0], context_params.moe_cache_size, quiet=quiet)
        context = new_context(model, context_params)
        draft = None
        if drafter is not None:
            before = held(header, model_params, model, context, host).devices
            draft = drafter.count(model_params, context_params, context, before, devices, host)
        now = held(header, model_params, model, context, host)
        used = devices_of(model)
        return Simulation(
            now.devices,
            places_of(tensors_of(model)),
            int(lib.llama_n_ctx(context)),
            int(lib.llama_n_ctx_seq(context)),
            int(lib.llama_model_n_ctx_train(model)),
            int(lib.llama_model_n_layer(model)),
            int(lib.llama_model_n_layer_nextn(model)),
            now.mapped,
            now.gaps,
            now.lazy,
            int(lib.llama_model_n_swa(model)),
            _reads(model, context),
            {layer: decoded(lib.ggml_backend_dev_name(used[at])) for layer, at in cached_layers(model).items()},
            draft,
        )


@contextmanager
def watched(header: Header, params: ModelParams, devices: Sequence[CData] | None) -> Iterator[None]:
    """Stand around a simulation: say which file could not be planned because a server went away."""
    try:
        targets = (override.target for override in params.tensor_overrides)
        with rpc_servers.watched(rpc_servers.before_load(params.devices, targets) if devices is None else ()):
            yield
    except RpcServerError as error:
        raise ModelLoadError(f"{header.paths[0]} could not be planned: {error}") from error


def load(header: Header, model_params: ModelParams, devices: Sequence[CData] | None) -> CData:
    """A model without memory.

    Raises
    ------
    ModelLoadError
    """
    header.check(model_params)
    described = {
        decoded(lib.ggml_backend_dev_name(each)): lib.ggml_backend_dev_buffer_type(each) for each in devices or ()
    }
    rules = tensor_overrides.resolve(model_params.tensor_overrides, list(header.tensors), header.paths[0], described)
    hooks = Hooks()
    params = replace(model_params, no_alloc=True, devices=None if devices is not None else model_params.devices)
    native, keep = native_model_params(params, rules, hooks)
    if devices is not None:
        native.devices = listed = ffi.new("ggml_backend_dev_t[]", [*devices, ffi.NULL])
        keep.append(listed)
    lib.moebind_log_forget()
    try:
        model = own(lib.own_llama_model_load_from_file, header.path.encode(), native[0])
    except NativeError as error:
        raise ModelLoadError(f"{header.paths[0]} could not be planned: {error.message}{log.recent_lines()}") from error
    if not model:
        raise ModelLoadError(f"{header.paths[0]} could not be planned{log.recent_lines()}")
    del keep  # llama.cpp read it
    return model


def new_context(model: CData, params: ContextParams, other: CData | None = None) -> CData:
    """A context without memory; ``other`` is that of the model that it drafts for.

    Raises
    ------
    ContextCreationError
    """
    try:
        check_together(params, params.n_ctx or int(lib.llama_model_n_ctx_train(model)), model)
        check_layers(model, params)
        native = plain_context_params(params)
        if other is not None:
            native.ctx_other = other
        holds = [model] if other is None else [model, other]
        context = own(lib.own_moebind_context_counted, model, native[0], holds=holds)
    except NativeError as error:
        raise ContextCreationError(f"no such context can be made: {error.message}{log.recent_lines()}") from error
    if not context:
        raise ContextCreationError(f"no such context can be made{log.recent_lines()}")
    return context


def devices_of(model: CData) -> list[CData]:
    """The devices that the layers of a model are spread over."""
    return [lib.moebind_model_device(model, at) for at in range(lib.moebind_model_n_devices(model))]


def held(header: Header, params: ModelParams, model: CData, context: CData, host: HostMemory | None) -> Held:
    """What a model and a context without memory would hold."""
    used = devices_of(model)
    mapped, lazy = _is_mapped(params, used), _is_lazy(params, header, used)
    parts = read_parts(context)
    gaps = alone = 0
    if mapped or lazy:
        parts, gaps, alone = _as_mapped(header, parts, tensors_of(model), mapped, lazy)
    return Held(gather(parts, used, host), mapped, gaps, alone)


def places_of(tensors: Sequence[tuple[str, CData]]) -> dict[str, str | None]:
    """For each tensor the name of its device; None is host memory. Of two of one name, the order says nothing."""
    places: dict[str, str | None] = {}
    devices: dict[CData, str | None] = {}
    for name, buffer_type in tensors:
        if buffer_type not in devices:
            devices[buffer_type] = _device_of(buffer_type)
        places[name] = devices[buffer_type] or places.get(name)
    return places


def tensors_of(model: CData) -> list[tuple[str, CData]]:
    count = lib.moebind_model_tensors(model, ffi.NULL, 0)
    tensors = ffi.new("struct moebind_tensor[]", count)
    lib.moebind_model_tensors(model, tensors, count)
    return [(decoded(tensor.name), tensor.buft) for tensor in tensors]


def _reads(model: CData, context: CData) -> dict[str | None, int]:
    """Bytes of weights that the graph of one token reads, by device."""
    reads = ffi.new("struct moebind_tensor[]", lib.moebind_model_tensors(model, ffi.NULL, 0))
    by_type: dict[CData, int] = {}
    for read in reads[0 : lib.moebind_token_reads(context, reads, len(reads))]:
        by_type[read.buft] = by_type.get(read.buft, 0) + read.nbytes
    found: dict[str | None, int] = {}
    for buffer_type, nbytes in by_type.items():
        device = _device_of(buffer_type)
        found[device] = found.get(device, 0) + nbytes
    return found


def _device_of(buffer_type: CData) -> str | None:
    if not buffer_type or lib.ggml_backend_buft_is_host(buffer_type):
        return None
    device = lib.ggml_backend_buft_get_device(buffer_type)
    if not device or lib.ggml_backend_dev_type(device) in {DeviceType.CPU, DeviceType.ACCEL}:
        return None
    return decoded(lib.ggml_backend_dev_name(device))


def _is_mapped(params: ModelParams, used: Sequence[CData]) -> bool:
    """Whether a load with these parameters maps the file: AUTO does when every device takes it."""
    if not params.use_mmap or params.no_alloc or not lib.llama_supports_mmap():
        return False
    if params.load_mode != LoadMode.AUTO:
        return True
    return _all_map(used)


def _all_map(used: Sequence[CData]) -> bool:
    """Whether each of the devices takes weights from a mapped file."""
    properties = ffi.new("struct ggml_backend_dev_props *")
    for device in used:
        lib.ggml_backend_dev_get_props(device, properties)
        if not properties.caps.mmap_support:
            return False
    return True


def _is_lazy(params: ModelParams, header: Header, used: Sequence[CData]) -> bool:
    """Whether rows of ``LAZY`` are read when they are needed: then it is mapped, however the rest is read."""
    if header.architecture not in LOOK_UP or LAZY not in header.tensors or not lib.llama_supports_mmap():
        return False
    if params.lazy_mode == LazyMode.AUTO:
        return header.tensors[LAZY].nbytes > LAZY_MIN and _all_map(used)
    return params.lazy_mode == LazyMode.ON


def _as_mapped(
    header: Header, parts: list[tuple[CData, BufferMemory]], tensors: list[tuple[str, CData]], mapped: bool, lazy: bool
) -> tuple[list[tuple[CData, BufferMemory]], int, int]:
    """``parts`` with the host's weights in mapped ranges; how many bytes of these hold none, and how many lazy ones.

    Lazy tensors are mapped by themselves, whether the others are or not.
    """
    plain = lib.ggml_backend_cpu_buffer_type()
    host = [buffer_type for buffer_type, _ in parts if buffer_type == plain or _is_pinned(buffer_type)]
    first: dict[tuple[int, bool], int] = {}
    last: dict[tuple[int, bool], int] = {}
    needed: dict[str, int] = {}
    for name, buffer_type in tensors:
        alone = lazy and name == LAZY
        if buffer_type in host and name in header.tensors and (mapped or alone):
            info = header.tensors[name]
            needed[name] = info.nbytes
            key = info.file, alone
            first[key] = min(first.get(key, info.offset), info.offset)
            last[key] = max(last.get(key, 0), info.offset + info.nbytes)
    kept = []
    for buffer_type, buffer in parts:
        if mapped:
            left = 0 if buffer_type in host else buffer.model
        else:
            left = buffer.model - (sum(needed.values()) if buffer_type == plain else 0)
        kept.append((buffer_type, replace(buffer, model=left)))
    kept = [(buffer_type, buffer) for buffer_type, buffer in kept if buffer.total]
    ranges = sum(last[key] - first[key] for key in first)
    if ranges:
        kept.append((plain, BufferMemory(MAPPED, ranges, 0, 0)))
    return kept, ranges - sum(needed.values()), needed.get(LAZY, 0) if lazy else 0


def _is_pinned(buffer_type: CData) -> bool:
    """Whether this is a device's host memory."""
    device = lib.ggml_backend_buft_get_device(buffer_type)
    return bool(device) and buffer_type == lib.ggml_backend_dev_host_buffer_type(device)
