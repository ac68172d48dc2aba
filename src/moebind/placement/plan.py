"""The memory that a model and a context will take, and where, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import SupportsIndex

from moebind._core import checks
from moebind._core.native import CData, lib
from moebind._core.sizes import parse_size, show_size
from moebind.backend.breakdown import DeviceMemory, MemoryBreakdown
from moebind.backend.devices import Device, native_device
from moebind.backend.host_memory import HostMemory
from moebind.enums import DeviceType, SplitMode
from moebind.params.params import ContextParams, ModelParams
from moebind.params.serialize import write
from moebind.placement.header import Header, read_header
from moebind.placement.simulation import MAPPED, simulate

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
        Tokens that its cache would hold; llama.cpp rounds up.
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
        The width of the model's sliding windows, in tokens; 0 without any. With ``swa_full=False``, their layers have a
        cache of about that size.
    places : Mapping[str, str | None]
        For each tensor of the model the device that it would be on; None means host memory.
    expert_bytes : int
        Bytes of the experts' tensors on devices other than the host.
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
    bytes_read: int | None = None
    _experts: Mapping[int, Mapping[str, int]] = field(default_factory=dict, repr=False, compare=False)
    #: Whether it is a fit's, which would find the same again.
    _fitted: bool = field(default=False, repr=False, compare=False)

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

    def to_dict(self) -> dict[str, object]:
        """The plan as plain values, for JSON: keys stay the same from version to version, sizes are bytes."""
        return {
            "path": self.path,
            "n_ctx": self.n_ctx,
            "mapped": self.mapped,
            "gaps": self.gaps,
            "lazy": self.lazy,
            "n_swa": self.n_swa,
            "model_params": write(self.model_params, callbacks=False),
            "context_params": write(self.context_params, callbacks=False),
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
                    **_sizes(device),
                    "free": device.free,
                    "capacity": device.capacity,
                    "buffers": [{"name": buffer.name, **_sizes(buffer)} for buffer in device.buffers],
                }
                for device in self.devices
            ],
            "bytes_read": self.bytes_read,
        }

    @property
    def advice(self) -> tuple[str, ...]:
        """A sentence for each device that lacks memory: how much, and what would help; empty if everything fits."""
        lacks = self.missing
        lines = [
            f"{device.name} lacks {show_size(lacks[device.name])}: {', or '.join(self._for_device(device))}."
            for device in self.devices[:-1]
            if device.name in lacks
        ]
        if self.host.name in lacks:
            lines.append(f"The host lacks {show_size(lacks[self.host.name])}: {'; '.join(self._for_host())}.")
        return tuple(lines)

    def _for_device(self, device: DeviceMemory) -> list[str]:
        help_: list[str] = []
        lacks = self.missing[device.name]
        there = {
            layer: sum(size for name, size in tensors.items() if self.places.get(name) == device.name)
            for layer, tensors in self._experts.items()
        }
        freed, enough = 0, None
        for layer in sorted(there):
            freed += there[layer]
            if freed >= lacks:
                enough = layer + 1
                break
        if enough is not None and len([1 for size in there.values() if size]) > 1 and enough < self.n_layer:
            help_.append(f"with_n_cpu_moe({enough}) keeps the experts of the first {enough} layers in host memory")
        elif freed:
            alone = "" if enough else ", which is not enough alone"
            help_.append(f"with_cpu_moe_all() keeps {show_size(freed)} of experts in host memory{alone}")
        if device.context > lacks:
            help_.append(
                f"an n_ctx below {self.n_ctx}, or smaller type_k and type_v, takes less than its "
                f"{show_size(device.context)} of context"
            )
        if not help_ or freed < lacks:
            layers = self.n_layer + self.n_layer_nextn + 1
            help_.append(f"an n_gpu_layers below {layers} leaves layers to the CPU")
        return help_

    def _for_host(self) -> list[str]:
        parts = {buffer.name: buffer.model for buffer in self.host.buffers}
        mapped = parts.get(MAPPED, 0) - self.gaps - self.lazy
        help_: list[str] = []
        if mapped > 0:
            help_.append(
                f"{show_size(mapped)} of it are pages of the file, which the system reads again when they do not stay: "
                "slow, but it runs"
            )
        repacked = sum(size for name, size in parts.items() if "REPACK" in name)
        if repacked:
            help_.append(f"use_extra_bufts=False leaves {show_size(repacked)} of repacked weights in the file's pages")
        return [*help_, "a smaller quantisation, or more on a device, takes less"]

    def __str__(self) -> str:
        hint = [] if self.fits or self._fitted else ["moebind.fit finds parameters that fit."]
        return "\n".join([*self._text(), *hint])

    def _text(self) -> list[str]:
        context = self.context_params
        kinds = dict.fromkeys([context.type_k.name, context.type_v.name])
        head = (
            f"{os.path.basename(self.path)}: n_ctx {self.n_ctx}, n_ubatch {context.n_ubatch}, cache {'/'.join(kinds)}"
        )
        lines = [head, *self._lines(with_free=True)]
        if self.gaps:
            lines.append(
                f"{MAPPED} counts whole ranges of the file; {show_size(self.gaps)} of them lie between the host's "
                "tensors and are not read."
            )
        if self.lazy:
            lines.append(
                f"{show_size(self.lazy)} of {MAPPED} are tables of which only rows are read, as tokens need them."
            )
        if self.bytes_read is not None:
            lines.append(
                f"{show_size(self.bytes_read)} of it were read from the Hugging Face Hub; nothing was downloaded."
            )
        return [*lines, *(["It fits."] if self.fits else ["It does not fit.", *self.advice])]

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


def _sizes(part: object) -> dict[str, int]:
    return {name: getattr(part, name) for name in ("model", "context", "compute", "total")}


def plan(
    path: str | os.PathLike[str],
    model_params: ModelParams | None = None,
    context_params: ContextParams | None = None,
    *,
    devices: Sequence[Device | str | int] | None = None,
    host: SupportsIndex | str | None = None,
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
        the host, and with ``op_offload`` room for copies of experts from there. A driver's own memory is not counted.
        ``[]`` is a machine with a CPU alone.
    host
        The memory of the machine to plan for, all of it free, instead of this machine's: bytes, or a text such as
        ``"64GiB"``. It does not change ``devices``: ``devices=[], host="64GiB"`` is a machine of that size without a
        GPU.

    Returns
    -------
    Plan

    Raises
    ------
    ModelNotFoundError, ModelLoadError, ContextCreationError, ValueError
        As loading the model and making the context would.

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
    memory = described_host(host)
    return make_plan(read_header(file), chosen, context, device_list(devices, chosen), memory)


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
        raise TypeError(f"model_params is {chosen!r}; it takes ModelParams")
    if not isinstance(context, ContextParams):
        raise TypeError(f"context_params is {context!r}; it takes ContextParams")
    if chosen.vocab_only:
        raise ValueError("model_params has vocab_only: such a model has no weights to plan for")
    if chosen.split_mode == SplitMode.TENSOR:
        raise ValueError(
            "split_mode is TENSOR, which cuts up each tensor: llama.cpp takes its devices for one, and does not tell "
            "what each of them holds. Plan with LAYER instead"
        )
    return file, chosen, context


def described_host(host: SupportsIndex | str | None) -> HostMemory | None:
    """A host with so much memory, all of it free; None: this machine."""
    if host is None:
        return None
    size = parse_size("host", host, low=1)
    return HostMemory(size, size)


def device_list(devices: Sequence[Device | str | int] | None, params: ModelParams) -> list[CData] | None:
    """Native devices, those that are only described included; None: those of the parameters, or of this machine."""
    if devices is None:
        return None
    if isinstance(devices, (str, bytes)) or not isinstance(devices, Sequence):
        raise TypeError(f"devices is {devices!r}; it takes a list, such as ['24GiB']")
    if params.devices is not None:
        raise ValueError("devices are given twice: as an argument and in model_params; give them once")
    if len(devices) >= lib.llama_max_devices():
        raise ValueError(f"devices has {len(devices)}; llama.cpp takes at most {lib.llama_max_devices() - 1}")
    chosen: list[CData] = []
    for at, each in enumerate(devices):
        if isinstance(each, Device):
            if each.type == DeviceType.CPU:
                raise ValueError("devices holds the CPU, which takes what the others do not")
            chosen.append(native_device(each.name))
        else:
            chosen.append(lib.moebind_described_device(at, parse_size(f"devices[{at}]", each, low=1)))
    if len(set(chosen)) != len(chosen):
        raise ValueError("devices names a device twice")
    if params.split_mode == SplitMode.ROW and not all(isinstance(each, Device) for each in devices):
        raise ValueError(
            "split_mode is ROW, for which llama.cpp needs a buffer of the real devices: those that are only described "
            "have none. Plan with LAYER instead"
        )
    return chosen


def make_plan(
    header: Header,
    model_params: ModelParams,
    context_params: ContextParams,
    devices: list[CData] | None,
    host: HostMemory | None = None,
) -> Plan:
    """Simulate, and describe the result."""
    found = simulate(header, model_params, context_params, devices, host)
    experts = {
        layer: {name: size for name, size in tensors.items() if name in found.places}
        for layer, tensors in header.experts.items()
    }
    on_device = sum(
        size for tensors in experts.values() for name, size in tensors.items() if found.places.get(name) is not None
    )
    return Plan(
        found.devices,
        header.paths[0],
        model_params,
        context_params,
        found.n_ctx,
        found.n_layer,
        found.n_layer_nextn,
        found.mapped,
        found.gaps,
        found.lazy,
        found.n_swa,
        MappingProxyType(found.places),
        on_device,
        header.gguf.bytes_read,
        experts,
    )
