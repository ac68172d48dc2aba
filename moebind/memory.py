"""Where a model's and a context's bytes are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moebind._native import CData, decoded, ffi, lib
from moebind.enums import DeviceType

__all__ = ["BufferMemory", "DeviceMemory", "MemoryBreakdown"]


@dataclass(frozen=True)
class BufferMemory:
    """Bytes in one buffer type, such as ``CPU``, ``CPU_REPACK`` or ``CUDA0``: weights, cache and state, scratch."""

    name: str
    model: int
    context: int
    compute: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.model + self.context + self.compute


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
        The same, by buffer type. Repacked weights (``CPU_REPACK``) and pinned host memory are apart.
    """

    name: str
    type: DeviceType
    model: int
    context: int
    compute: int
    buffers: tuple[BufferMemory, ...]

    @property
    def total(self) -> int:
        """All of them."""
        return self.model + self.context + self.compute


HOST = "Host"


@dataclass(frozen=True)
class MemoryBreakdown:
    """What a live context and its model hold, device by device.

    Weights of a mapped file count from the first to the last that the host has, what lies between included.

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
        """Bytes in host memory, pinned and repacked ones included."""
        return self.host.total

    def reduction_vs(self, other: MemoryBreakdown) -> float:
        """How much less this holds on devices than ``other`` does, as a fraction of ``other``'s: 0.94 is 94 % saved."""
        if not isinstance(other, MemoryBreakdown):
            raise TypeError(f"other is {other!r}; it takes a MemoryBreakdown")
        return 1.0 - self.device_bytes / other.device_bytes if other.device_bytes else 0.0

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("memory, MiB", "model", "context", "compute", "total")]
        for device in self.devices:
            rows.append(_row(device.name, device))
            if len(device.buffers) > 1:
                rows += [_row("  " + buffer.name, buffer) for buffer in device.buffers]
        width = max(len(row[0]) for row in rows)
        return "\n".join(f"{row[0]:<{width}}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows)


def _row(name: str, part: DeviceMemory | BufferMemory) -> tuple[str, ...]:
    return (name, *(f"{size / 2**20:.1f}" for size in (part.model, part.context, part.compute, part.total)))


def _gather(name: str, kind: DeviceType, buffers: Iterable[BufferMemory]) -> DeviceMemory:
    own = tuple(buffers)
    return DeviceMemory(
        name, kind, sum(b.model for b in own), sum(b.context for b in own), sum(b.compute for b in own), own
    )


def read_breakdown(context: CData) -> MemoryBreakdown:
    """Ask a ``llama_context`` for its memory."""
    count = lib.moebind_memory_breakdown(context, ffi.NULL, 0)
    parts = ffi.new("struct moebind_memory[]", count)
    lib.moebind_memory_breakdown(context, parts, count)
    by_device: dict[tuple[str, DeviceType], list[BufferMemory]] = {}
    host: list[BufferMemory] = []
    for part in parts:
        buffer = BufferMemory(decoded(lib.ggml_backend_buft_name(part.buft)), part.model, part.context, part.compute)
        device = lib.ggml_backend_buft_get_device(part.buft)
        kind = DeviceType(lib.ggml_backend_dev_type(device)) if device else DeviceType.CPU
        # Pinned host memory belongs to a GPU, and extra buffer types like CPU_REPACK to the CPU: all of it is RAM.
        if lib.ggml_backend_buft_is_host(part.buft) or kind in {DeviceType.CPU, DeviceType.ACCEL}:
            host.append(buffer)
        else:
            by_device.setdefault((decoded(lib.ggml_backend_dev_name(device)), kind), []).append(buffer)
    found = [_gather(name, kind, buffers) for (name, kind), buffers in by_device.items()]
    return MemoryBreakdown((*found, _gather(HOST, DeviceType.CPU, host)))
