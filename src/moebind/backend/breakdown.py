"""Where a model's and a context's bytes are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from moebind._core.native import CData, decoded, ffi, lib
from moebind._core.shown import shown
from moebind._core.tables import Column, text_table
from moebind.backend.devices import capacities
from moebind.backend.host_memory import HostMemory, host_memory
from moebind.enums import DeviceType

__all__ = ["BufferMemory", "DeviceMemory", "MemoryBreakdown"]


@dataclass(frozen=True)
class BufferMemory:
    """Bytes in one buffer type, such as ``CPU``, ``CPU_REPACK`` or ``CUDA0``: as in :class:`DeviceMemory`."""

    name: str
    model: int
    context: int
    compute: int
    moe_cache: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.model + self.context + self.compute + self.moe_cache


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device; the host is one of them, with the name ``"Host"``.

    Attributes
    ----------
    name : str
        The device's name.
    type : DeviceType
        What kind of device it is; CPU for the host.
    model, context, compute : int
        Weights; KV cache and recurrent state; scratch memory of the computation.
    buffers : tuple[BufferMemory, ...]
        The same, by buffer type. Repacked weights (``CPU_REPACK``) and pinned host memory are listed separately.
    free : int
        Bytes that were free when this was made; for the host, within the limits of its control groups. Comparisons
        ignore it.
    capacity : int
        Bytes that it has in all, or is taken to have.
    moe_cache : int
        The cache of experts (:attr:`ContextParams.moe_cache_size`).
    """

    name: str
    type: DeviceType
    model: int
    context: int
    compute: int
    buffers: tuple[BufferMemory, ...]
    free: int = field(default=0, compare=False)
    capacity: int = field(default=0, compare=False)
    moe_cache: int = 0

    @property
    def total(self) -> int:
        """All of it: ``model + context + compute + moe_cache``."""
        return self.model + self.context + self.compute + self.moe_cache


HOST = "Host"
#: What memory is taken for: attributes of BufferMemory and DeviceMemory.
PARTS = ("model", "context", "moe_cache", "compute")


def sizes_of(memory: BufferMemory | DeviceMemory) -> dict[str, int]:
    """What memory is taken for, and all of it, for JSON."""
    return {name: getattr(memory, name) for name in (*PARTS, "total")}


@dataclass(frozen=True)
class MemoryBreakdown:
    """Bytes that a live context and its model hold, device by device.

    The weights of a mapped file count from the first to the last that the host has, including what lies between them.

    Attributes
    ----------
    devices : tuple[DeviceMemory, ...]
        In llama.cpp's order, the host last. Printing the breakdown gives a table in MiB.
    """

    devices: tuple[DeviceMemory, ...]

    @property
    def host(self) -> DeviceMemory:
        """The host's part."""
        return self.devices[-1]

    @property
    def device_bytes(self) -> int:
        """Bytes on devices other than the host."""
        return sum(device.total for device in self.devices[:-1])

    @property
    def host_bytes(self) -> int:
        """Bytes in host memory, including pinned and repacked ones."""
        return self.host.total

    def reduction_vs(self, other: MemoryBreakdown) -> float:
        """How much less this holds on devices than ``other`` does, as a fraction of ``other``'s: 0.94 is 94 % saved."""
        if not isinstance(other, MemoryBreakdown):
            raise TypeError(f"other is {shown(other)}; it takes a MemoryBreakdown")
        return 1.0 - self.device_bytes / other.device_bytes if other.device_bytes else 0.0

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        """What a notebook shows: how much of each device's memory is taken, and for what, and the table."""
        return self._html(str(self))

    def _html(self, text: str) -> str:
        from moebind._core.pictures import html_bars, html_of

        rows = [
            (device.name, {part.replace("_", " "): getattr(device, part) for part in PARTS}, self._whole(device))
            for device in self.devices
        ]
        return html_of(text, html_bars(rows))

    @staticmethod
    def _whole(device: DeviceMemory) -> int:
        """How many bytes a bar stands for that is full."""
        return device.capacity

    def _lines(self, with_free: bool = False) -> list[str]:
        """A table in MiB; buffers that are not simply the device's memory have lines of their own."""
        # The cache of experts has a column where there is one.
        parts = [part for part in PARTS if part != "moe_cache" or any(device.moe_cache for device in self.devices)]
        parts.append("total")
        rows: list[list[object]] = []
        for device in self.devices:
            rows.append([device.name, *_mebibytes(device, parts), device.free / 2**20])
            if len(device.buffers) > 1 or any(
                buffer.name != "CPU" and device.name == HOST for buffer in device.buffers
            ):
                rows += [["  " + buffer.name, *_mebibytes(buffer, parts), None] for buffer in device.buffers]
        sizes = [Column(part.replace("_", " "), ".1f", width=9) for part in parts]
        columns = [_NAME, *sizes, _FREE] if with_free else [_NAME, *sizes]
        return text_table(columns, [row[: len(columns)] for row in rows], separator=" ")


_NAME = Column("memory, MiB", left=True)
_FREE = Column("free", ".1f", width=9)


def _mebibytes(memory: DeviceMemory | BufferMemory, parts: Iterable[str]) -> list[float]:
    return [getattr(memory, part) / 2**20 for part in parts]


def gather(
    parts: Iterable[tuple[CData, BufferMemory]], devices: Iterable[CData], described: HostMemory | None = None
) -> tuple[DeviceMemory, ...]:
    """Buffers by their types, device by device: ``devices`` in their order, even when empty, others, and the host.

    ``described`` is the memory of a host that need not be this machine.
    """
    by_device: dict[CData, list[BufferMemory]] = {device: [] for device in devices}
    host: list[BufferMemory] = []
    for buffer_type, buffer in parts:
        device = lib.ggml_backend_buft_get_device(buffer_type)
        kind = lib.ggml_backend_dev_type(device) if device else DeviceType.CPU
        # Pinned host memory belongs to a GPU, and extra buffer types like CPU_REPACK to the CPU: all of it is RAM.
        if lib.ggml_backend_buft_is_host(buffer_type) or kind in {DeviceType.CPU, DeviceType.ACCEL}:
            host.append(buffer)
        else:
            by_device.setdefault(device, []).append(buffer)
    limits = host_memory() if described is None else described
    return (
        *(_on_device(device, buffers) for device, buffers in by_device.items()),
        _sum(HOST, DeviceType.CPU, host, limits.free, limits.capacity),
    )


def _on_device(device: CData, buffers: list[BufferMemory]) -> DeviceMemory:
    name = decoded(lib.ggml_backend_dev_name(device))
    free, total = ffi.new("size_t *"), ffi.new("size_t *")
    lib.ggml_backend_dev_memory(device, free, total)
    capacity = capacities.get(name, total[0])
    return _sum(name, DeviceType(lib.ggml_backend_dev_type(device)), buffers, min(free[0], capacity), capacity)


def _sum(name: str, kind: DeviceType, buffers: list[BufferMemory], free: int, capacity: int) -> DeviceMemory:
    buffers.sort(key=lambda buffer: buffer.name)  # llama.cpp's order is that of addresses
    sums = (sum(b.model for b in buffers), sum(b.context for b in buffers), sum(b.compute for b in buffers))
    return DeviceMemory(name, kind, *sums, tuple(buffers), free, capacity, sum(b.moe_cache for b in buffers))


def read_parts(context: CData) -> list[tuple[CData, BufferMemory]]:
    """Ask a ``llama_context`` for its memory, by buffer type."""
    count = lib.moebind_memory_breakdown(context, ffi.NULL, 0)
    parts = ffi.new("struct moebind_memory[]", count)
    lib.moebind_memory_breakdown(context, parts, count)
    return [
        (
            part.buft,
            BufferMemory(
                decoded(lib.ggml_backend_buft_name(part.buft)), part.model, part.context, part.compute, part.moe_cache
            ),
        )
        for part in parts
    ]


def read_breakdown(context: CData) -> MemoryBreakdown:
    """Ask a ``llama_context`` for its memory."""
    model = lib.llama_get_model(context)
    devices = [lib.moebind_model_device(model, at) for at in range(lib.moebind_model_n_devices(model))]
    return MemoryBreakdown(gather(read_parts(context), devices))
