"""The memory that a model and a context will take, and where, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, SupportsIndex

from moebind._core import checks
from moebind._core.native import CData, decoded, lib
from moebind._core.shown import shown
from moebind._core.sizes import show_size
from moebind.backend.breakdown import HOST, DeviceMemory, MemoryBreakdown, sizes_of
from moebind.backend.devices import Device
from moebind.backend.host_memory import HostMemory
from moebind.enums import SplitMode
from moebind.errors import MoebindError
from moebind.params.context_length import length_notes
from moebind.params.draft import Draft
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ContextParams, ModelParams
from moebind.params.serialize import write
from moebind.placement import advice
from moebind.placement.described_devices import described_host, device_list
from moebind.placement.draft_memory import DraftMemory, draft_part
from moebind.placement.header import Header, read_header
from moebind.placement.mmproj import Projector, find_projector
from moebind.placement.simulation import MAPPED, simulate
from moebind.placement.speed import Bandwidth, reads_text, tokens_per_second
from moebind.placement.summary import does_not_fit, summary

if TYPE_CHECKING:
    from moebind.placement.drafter import Drafter

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan(MemoryBreakdown):
    """The memory that a model and a context will take. Made by :func:`plan`.

    It has the same lines as a :class:`MemoryBreakdown`. Printing it gives a table in MiB with the free memory, and says
    whether it fits and, if not, by how much and what would help.

    Attributes
    ----------
    path : str
        The model's file, or the first one.
    model_params : ModelParams
        How it would be loaded.
    context_params : ContextParams
        The context that would be made.
    n_ctx : int
        Tokens that its cache would hold: llama.cpp rounds up, to a multiple of 256 for each sequence.
    n_layer : int
        Layers of the model.
    n_layer_nextn : int
        Layers behind these that predict further ahead, loaded or not: ``n_gpu_layers`` counts them, too.
    mapped : bool
        Whether the file would be mapped: ``CPU_Mapped`` is then pages of the file, not memory of the process.
    gaps : int
        Bytes in the mapped ranges of the file that belong to no tensor of the host, since one range goes from the first
        tensor to the last. They are counted, as in a breakdown, but never read, so they need no free memory.
    lazy : int
        Bytes of tables that are mapped by themselves and read row by row, for the tokens that come (``lazy_mode``).
        They are counted, and need no free memory.
    n_swa : int
        The width of sliding windows in tokens, about which their layers cache with ``swa_full=False``; 0 without any.
    places : Mapping[str, str | None]
        For each tensor of the model the device that it would be on; None means host memory.
    expert_bytes : int
        Bytes of the experts' tensors on devices other than the host.
    weights_per_token : Mapping[str, int]
        For each device, and the host, the bytes of weights in its memory that one token reads: matrices whole, of
        experts those that are used, of what rows are looked up in these rows, of layers that only predict ahead none.
        They are counted in the graph that llama.cpp computes for one token. What a cache of experts will have is not
        known: experts are counted where they come from.
    bytes_read : int | None
        How many bytes of the files were read from the Hugging Face Hub; None for files that are here.
    """

    path: str = ""
    model_params: ModelParams = field(default_factory=ModelParams)
    context_params: ContextParams = field(default_factory=ContextParams)
    n_ctx: int = 0
    n_layer: int = 0
    n_layer_nextn: int = 0
    mapped: bool = False
    gaps: int = 0
    lazy: int = 0
    n_swa: int = 0
    places: Mapping[str, str | None] = field(default_factory=dict, repr=False, compare=False)
    expert_bytes: int = 0
    weights_per_token: Mapping[str, int] = field(default_factory=dict)
    bytes_read: int | None = None
    _experts: Mapping[int, Mapping[str, int]] = field(default_factory=dict, repr=False, compare=False)
    _header: Header | None = field(default=None, repr=False, compare=False)
    _natives: list[CData] | None = field(default=None, repr=False, compare=False)
    _memory: HostMemory | None = field(default=None, repr=False, compare=False)
    _projector: Projector | None = field(default=None, repr=False, compare=False)
    _drafter: Drafter | None = field(default=None, repr=False, compare=False)
    _draft: DraftMemory | None = field(default=None, repr=False, compare=False)
    #: Layers of which a cache of experts holds some, or would: each with the device that computes it.
    _cached: Mapping[int, str] = field(default_factory=dict, repr=False, compare=False)
    _length_notes: tuple[str, ...] = field(default=(), repr=False, compare=False)
    #: Whether it is a fit's, which would find the same again.
    _fitted: bool = field(default=False, repr=False, compare=False)

    def _again(self, model_params: ModelParams, context_params: ContextParams) -> Plan:
        """A plan for the same model and devices."""
        header = read_header(self.path) if self._header is None else self._header
        where = (self._natives, self._memory)
        return make_plan(header, model_params, context_params, *where, projector=self._projector, drafter=self._drafter)

    @property
    def mmproj(self) -> str | None:
        """The projector's file that is counted, as a buffer ``mmproj`` of the first device; None: none is."""
        return None if self._projector is None else self._projector.path

    @property
    def draft(self) -> Draft | None:
        """What is counted to draft, with all its parameters: a buffer ``draft`` of each device; None: nothing is.

        Its parameters are for :meth:`Model.load_from_file` and :meth:`Model.new_context`.
        """
        return None if self._draft is None else self._draft.draft

    @property
    def _own_devices(self) -> tuple[DeviceMemory, ...]:
        """The devices that the model's layers may be on; a draft may have others besides."""
        return tuple(device for device in self.devices[:-1] if device.name in self.weights_per_token)

    @property
    def _cache_shares(self) -> dict[str, float]:
        """How llama.cpp divides a cache of experts between devices: as ``tensor_split``, else by the free memory."""
        names = [device.name for device in self.devices[:-1]]
        split = self.model_params.tensor_split
        if split is not None and any(split):
            return dict(zip(names, [*split, *[0.0] * len(names)], strict=False))
        return {device.name: float(device.free) for device in self.devices[:-1]}

    @property
    def _host_needs(self) -> int:
        """Bytes of host memory that have to be free."""
        return self.host.total - self.gaps - self.lazy

    @property
    def missing(self) -> dict[str, int]:
        """For each device with too little free memory, how many bytes it lacks."""
        lacks = {device.name: device.total - device.free for device in self.devices[:-1]}
        lacks[self.host.name] = self._host_needs - self.host.free
        return {name: size for name, size in lacks.items() if size > 0}

    @property
    def fits(self) -> bool:
        """Whether each device and the host have enough free memory."""
        return not self.missing

    @property
    def summary(self) -> str:
        """The placement in a few words: ``"experts of 12 layers in host memory"``, or what it lacks."""
        experts = {name for tensors in self._experts.values() for name in tensors}
        return summary(self.places, experts) if self.fits else does_not_fit(self.missing)

    @property
    def bytes_per_token(self) -> dict[str, int]:
        """For each device, and the host, the bytes in its memory that one token reads when the cache is full.

        These are ``weights_per_token`` and one sequence's part of the KV cache and recurrent state. Results on the way
        through the layers, scratch memory and what is written are not counted: they are little, and mostly stay in the
        processor's own caches. Neither are copies between devices, and what a draft reads.
        """
        return self._reads(1.0)

    def _reads(self, filled: float) -> dict[str, int]:
        sequences = 1 if self.context_params.kv_unified else self.context_params.n_seq_max
        return {
            device.name: self.weights_per_token.get(device.name, 0)
            + int((device.context - draft_part(device, "context")) * filled) // sequences
            for device in self.devices
        }

    def speed(self, bandwidths: Mapping[str, Bandwidth], *, filled: float = 1.0) -> float:
        """Tokens in a second that one sequence can be given at most, if memories are as fast as stated.

        A token takes at least as long as it takes to read what it needs, from one memory after the other, as the layers
        follow each other. Nothing is faster, and what else takes time is not counted: computing, going from device to
        device. Large batches and long prompts are another matter, since their tokens share what is read.

        Parameters
        ----------
        bandwidths
            For each device of the plan, and ``"Host"``, the bytes that can be read from its memory in a second: a
            number, or a text such as ``"1000GB/s"`` or ``"80GiB/s"``. A card's are in its data sheet, the host's are
            measured by :func:`host_bandwidth`. Memories of which next to nothing is read may be
            left out.
        filled
            How much of the cache is filled, from 0 to 1.

        Returns
        -------
        float

        Raises
        ------
        TypeError, ValueError
            If a bandwidth is missing, unknown or no bandwidth.

        Examples
        --------
        >>> plan = moebind.plan("moe.gguf", devices=["24GiB"])
        >>> print(plan.speed({"GPU0": "1000GB/s", "Host": "80GB/s"}), "tokens/s at most")
        """
        return tokens_per_second(self._reads(checks.number("filled", filled, 0.0, 1.0)), bandwidths)

    def to_dict(self) -> dict[str, object]:
        """The plan as plain values, for JSON: keys stay the same from version to version, sizes are bytes."""
        return {
            **{name: getattr(self, name) for name in ("path", "mmproj", "n_ctx", "mapped", "gaps", "lazy", "n_swa")},
            "model_params": write(self.model_params, callbacks=False),
            "context_params": write(self.context_params, callbacks=False),
            "draft": None if self._draft is None else self._draft.to_dict(),
            "fits": self.fits,
            "missing": self.missing,
            "advice": list(self.advice),
            "device_bytes": self.device_bytes,
            "host_bytes": self.host_bytes,
            "expert_bytes": self.expert_bytes,
            "devices": [
                {
                    "name": device.name,
                    "type": device.type.name,
                    **sizes_of(device),
                    "free": device.free,
                    "capacity": device.capacity,
                    "buffers": [{"name": buffer.name, **sizes_of(buffer)} for buffer in device.buffers],
                }
                for device in self.devices
            ],
            "bytes_read": self.bytes_read,
            "weights_per_token": dict(self.weights_per_token),
            "bytes_per_token": self.bytes_per_token,
        }

    @property
    def advice(self) -> tuple[str, ...]:
        """A sentence for each device that lacks memory: how much, and what would help; empty if everything fits.

        What is said to be enough was planned.
        """
        lacks = self.missing
        lines = [
            f"{device.name} lacks {show_size(lacks[device.name])}: {', or '.join(self._for_device(device))}."
            for device in self.devices[:-1]
            if device.name in lacks
        ]
        if self.host.name in lacks:
            advised = "; ".join(advice.for_host(self.host, self.gaps + self.lazy, len(self.devices) == 1))
            lines.append(f"The host lacks {show_size(lacks[self.host.name])}: {advised}.")
        return tuple(lines)

    def _for_device(self, device: DeviceMemory) -> list[str]:
        sizes = {
            layer: sum(size for name, size in tensors.items() if self.places.get(name) == device.name)
            for layer, tensors in self._experts.items()
        }
        others = set(self.missing) - {device.name}

        def enough(model: ModelParams, context: ContextParams) -> bool:
            try:
                missing = self._again(model, context).missing
            except (MoebindError, ValueError):
                return False
            return set(missing) - {self.host.name} <= others  # nothing is moved from one that lacks to another

        return advice.for_device(
            device,
            self.model_params,
            self.context_params,
            n_ctx=self.n_ctx,
            n_layer=self.n_layer,
            n_layer_nextn=self.n_layer_nextn,
            experts={layer: size for layer, size in sizes.items() if size},
            enough=enough,
        )

    def __str__(self) -> str:
        hint = [] if self.fits or self._fitted else ["moebind.fit finds parameters that fit."]
        return "\n".join([*self._text(), *hint])

    def _text(self) -> list[str]:
        context = self.context_params
        kinds = dict.fromkeys([context.type_k.name, context.type_v.name])
        head = (
            f"{os.path.basename(self.path)}: n_ctx {self.n_ctx}, n_ubatch {context.n_ubatch}, cache {'/'.join(kinds)}"
        )
        table = self._lines(with_free=True)
        lines = [head, *self._length_notes, *table, *reads_text(self.bytes_per_token)]
        if self.gaps:
            lines.append(
                f"{MAPPED} counts whole ranges of the file, with {show_size(self.gaps)} of tensors that are kept "
                "elsewhere."
            )
        if self.lazy:
            lines.append(
                f"{show_size(self.lazy)} of {MAPPED} are tables of which only rows are read, as tokens need them."
            )
        if self.gaps or self.lazy:
            lines.append(f"Without these, the host needs {show_size(self._host_needs)} of its memory.")
        if self.bytes_read is not None:
            lines.append(
                f"{show_size(self.bytes_read)} of the file were read from the Hugging Face Hub; nothing was downloaded."
            )
        return [*lines, *(["It fits."] if self.fits else ["It does not fit.", *self.advice])]

    @staticmethod
    def _whole(device: DeviceMemory) -> int:
        return device.free

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the plan as stacked bars, one per device, into a file.

        Parameters
        ----------
        path
            The file; its ending chooses the format (``.png``, ``.svg``, ``.pdf``). The background is transparent, and
            the colours suit light and dark pages.

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        """
        from moebind.placement.plot import plot_plan

        plot_plan(self.devices, self.gaps, checks.path("path", path))


@explained_with_fields(model="plan(path, {})", context="plan(path, context_params={})")
def plan(
    path: str | os.PathLike[str],
    model_params: ModelParams | None = None,
    context_params: ContextParams | None = None,
    *,
    devices: Sequence[Device | str | int] | None = None,
    host: SupportsIndex | str | None = None,
    mmproj: str | os.PathLike[str] | bool | None = None,
    draft: Draft | str | os.PathLike[str] | bool | None = None,
) -> Plan:
    """Find out how much memory a model and a context would take, without loading anything.

    Reads the headers of the model's files, but no weights. llama.cpp then simulates the load and the context, so the
    result is what it would really allocate. Takes milliseconds.

    Parameters
    ----------
    path
        The model's file, or the first one of a split model; or the address of one on the Hugging Face Hub, as
        :meth:`Gguf.from_file` takes it.
    model_params, context_params
        As for :meth:`Model.load_from_file` and :meth:`Model.new_context`. None: what these take without parameters,
        which is a context of 512 tokens; ``moebind plan`` on the command line takes 4096.
    devices
        Devices to plan for, instead of this machine's or those of ``model_params``: a :class:`Device`, or the size of
        one that need not exist here, in bytes or as text. ``["24GiB", "24GiB"]`` are two GPUs with the names ``GPU0``
        and ``GPU1``. In a plan they are what CUDA's devices are: they support every operation, have pinned memory on
        the host, and with ``op_offload`` room for copies of experts from there. ``"vulkan:16GiB"`` is a device of
        Vulkan's: the same, but memory is allocated in parts of at most 1 GiB, a tensor of 4 GiB or more stays on the
        host, and a cache of a type that Vulkan does not write cannot be made. A driver's own memory is not counted.
        If ``model_params`` has devices, too, they say which of these are used.
        ``[]`` is a machine with a CPU alone.
    host
        The memory of the machine to plan for, all of it free, instead of this machine's: bytes, or a text such as
        ``"64GiB"``. It does not change ``devices``: ``devices=[], host="64GiB"`` is a machine of that size without a
        GPU.
    mmproj
        The file of a projector, which sees or hears for the model, to be counted with it: on the first device, as
        ``MtmdContext`` loads it, with the scratch memory of a picture; or its address on the Hugging Face Hub, of which
        the header is read. True: the one that lies beside the model, in its folder or repository.
    draft
        What drafts for it (:class:`Speculative`), to be counted as well, with a context as large as the model's: the
        draft's file, or a :class:`Draft`, which has its parameters, too. True: the model's own layers for multi-token
        prediction, which are then loaded, or else ``mtp-*.gguf`` beside the model, in its folder or repository. What
        the model's context holds for a draft that reads its hidden states is counted with the model's.

    Returns
    -------
    Plan

    Raises
    ------
    ModelNotFoundError, ModelLoadError, ContextCreationError, ValueError
        As loading the model and making the context would.
    SpeculativeError
        If the draft is none for this model.

    Notes
    -----
    Uses ``llama_model_params.no_alloc`` and ``llama_get_memory_breakdown``. Loaded models, and everything else
    that uses memory, make ``free`` less than ``capacity``.

    Examples
    --------
    >>> plan = moebind.plan("moe.gguf", ModelParams().with_cpu_moe_all(), devices=["1GiB"])
    >>> plan.fits, plan.devices[0].name
    (True, 'GPU0')
    """
    file, chosen, context = check_arguments(path, model_params, context_params)
    memory, seeing = described_host(host), find_projector(mmproj, file)
    natives, header = device_list(devices, chosen), read_header(file)
    drafter = None
    if draft is not None:
        from moebind.placement.drafter import find_drafter  # few plans have one

        drafter, chosen = find_drafter(draft, file, header, chosen, natives)
    return make_plan(header, chosen, context, natives, memory, projector=seeing, drafter=drafter)


def check_arguments(
    path: str | os.PathLike[str], model_params: ModelParams | None, context_params: ContextParams | None
) -> tuple[str, ModelParams, ContextParams]:
    """Check the arguments' types, and replace None by the defaults.

    Raises
    ------
    TypeError
    """
    file = checks.path("path", path)
    chosen = ModelParams() if model_params is None else model_params
    context = ContextParams() if context_params is None else context_params
    if not isinstance(chosen, ModelParams):
        raise TypeError(f"model_params is {shown(chosen)}; it takes ModelParams")
    if not isinstance(context, ContextParams):
        raise TypeError(f"context_params is {shown(context)}; it takes ContextParams")
    if chosen.vocab_only:
        raise ValueError("model_params has vocab_only: such a model has no weights to plan for")
    if chosen.split_mode == SplitMode.TENSOR:
        raise ValueError(
            "split_mode is TENSOR, which cuts up each tensor: llama.cpp takes its devices for one, and does not tell "
            "what each of them holds. Plan with LAYER instead"
        )
    return file, chosen, context


def make_plan(
    header: Header,
    model_params: ModelParams,
    context_params: ContextParams,
    devices: list[CData] | None,
    host: HostMemory | None = None,
    *,
    projector: Projector | None = None,
    drafter: Drafter | None = None,
    quiet: bool = False,
) -> Plan:
    """Simulate, without warnings if ``quiet``; of ``devices``, those of the parameters are used, if these have any."""
    used = devices
    if devices is not None and model_params.devices is not None:
        by_name = {decoded(lib.ggml_backend_dev_name(native)): native for native in devices}
        used = [by_name[device.name] for device in model_params.devices]
    found = simulate(header, model_params, context_params, used, host, drafter=drafter, quiet=quiet)
    held = found.devices if projector is None else projector.added_to(found.devices)
    draft = found.draft
    experts = {
        layer: {name: size for name, size in tensors.items() if name in found.places}
        for layer, tensors in header.experts.items()
    }
    on_device = sum(
        size for tensors in experts.values() for name, size in tensors.items() if found.places.get(name) is not None
    )
    reads = {each.name: found.reads.get(None if each.name == HOST else each.name, 0) for each in found.devices}
    return Plan(
        held if draft is None else draft.added_to(held),
        header.paths[0],
        model_params,
        context_params,
        found.n_ctx,
        found.n_layer,
        found.n_layer_nextn,
        found.mapped,
        found.gaps + (0 if draft is None else draft.gaps),
        found.lazy + (0 if draft is None else draft.lazy),
        found.n_swa,
        MappingProxyType(found.places),
        on_device,
        MappingProxyType(reads),
        header.gguf.bytes_read,
        experts,
        header,
        devices,
        host,
        projector,
        drafter,
        draft,
        MappingProxyType(found.cached),
        tuple(length_notes(context_params.n_ctx, found.n_ctx, found.n_ctx_seq, found.n_ctx_train)),
    )
