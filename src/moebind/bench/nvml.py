"""Memory of NVIDIA's cards as their driver sees it, through NVML (the package ``nvidia-ml-py``).

What a process holds there, with what the driver and CUDA keep for themselves: what no count of buffers can tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from moebind._core import checks
from moebind._core.native import decoded, ffi, lib
from moebind.backend.devices import local_gpus

__all__ = ["GpuState", "devices", "process_memory", "reason"]


@dataclass(frozen=True)
class GpuState:
    """A card, as its driver sees it.

    Attributes
    ----------
    name : str
        llama.cpp's name for it, such as ``"CUDA0"``, if it uses it; otherwise the UUID.
    product : str
        What it is.
    uuid : str
        NVML's name for it, which stays the same.
    bus : str
        Where it is on the PCI bus, as ``0000:41:00.0``.
    total, used : int
        Bytes of its memory, and those in use by anybody.
    driver : str
        The version of the driver.
    """

    name: str
    product: str
    uuid: str
    bus: str
    total: int
    used: int
    driver: str


class AbsentError(Exception):
    """NVML cannot be asked; the text says why."""


@contextmanager
def _open() -> Iterator[Any]:
    try:
        import pynvml
    except ImportError:
        raise AbsentError("the package nvidia-ml-py is not installed: pip install 'moebind[bench]'") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise AbsentError(f"NVML says: {error}") from None
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise AbsentError(f"NVML says: {error}") from None
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def reason() -> str | None:
    """Why NVML cannot be asked on this machine; None if it can."""
    try:
        with _open() as nvml:
            nvml.nvmlDeviceGetCount()
    except AbsentError as absent:
        return str(absent)
    return None


def devices() -> list[GpuState] | None:
    """All cards that the driver shows to this process, in NVML's order.

    Returns
    -------
    list[GpuState] or None
        None if NVML cannot be asked; :func:`reason` says why.

    Notes
    -----
    What llama.cpp calls a card is found out from its backend: CUDA's takes memory on each card when it is first
    asked. The numbers are read before that.
    """
    try:
        with _open() as nvml:
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            read = [
                (
                    _text(nvml.nvmlDeviceGetName(handle)),
                    _text(nvml.nvmlDeviceGetUUID(handle)),
                    _bus(nvml, handle),
                    nvml.nvmlDeviceGetMemoryInfo(handle),
                )
                for handle in _handles(nvml)
            ]
    except AbsentError:
        return None
    names = names_by_bus()
    return [
        GpuState(names.get(bus, uuid), product, uuid, bus, int(memory.total), int(memory.used), driver)
        for product, uuid, bus, memory in read
    ]


def process_memory(pid: int) -> dict[str, int] | None:
    """Bytes that a process holds on each card, as the driver counts them.

    Parameters
    ----------
    pid
        Its id, as this process sees it.

    Returns
    -------
    dict[str, int] or None
        By the names of the cards (see :class:`GpuState`); only those that it holds something on. Empty for a process
        that uses none, and in containers whose driver does not translate ids: there, ``used`` of the cards, before and
        after, says what an otherwise idle card was given. None if NVML cannot be asked.
    """
    return snapshot(checks.integer("pid", pid, 1))[0]


def snapshot(pid: int) -> tuple[dict[str, int] | None, dict[str, int] | None, str | None]:
    """Of one moment: what a process holds on each card, what of each is in use by anybody, why neither is known."""
    held: dict[str, int] = {}
    used: dict[str, int] = {}
    buses: dict[str, str] = {}
    try:
        with _open() as nvml:
            for handle in _handles(nvml):
                uuid = _text(nvml.nvmlDeviceGetUUID(handle))
                buses[uuid] = _bus(nvml, handle)
                used[uuid] = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
                # A process that computes and draws is in both lists, with the same number.
                sizes = [
                    int(each.usedGpuMemory)
                    for list_ in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses)
                    for each in _listed(nvml, list_, handle)
                    if each.pid == pid and each.usedGpuMemory is not None
                ]
                if sizes:
                    held[uuid] = max(sizes)
    except AbsentError as absent:
        return None, None, str(absent)
    known = names_by_bus()
    names = {uuid: known.get(bus, uuid) for uuid, bus in buses.items()}
    return {names[uuid]: size for uuid, size in held.items()}, {names[uuid]: size for uuid, size in used.items()}, None


def _listed(nvml: Any, list_: Any, handle: Any) -> list[Any]:
    try:
        return list(list_(handle))
    except nvml.NVMLError_NotSupported:  # a card that has no such list
        return []


def _handles(nvml: Any) -> list[Any]:
    return [nvml.nvmlDeviceGetHandleByIndex(at) for at in range(nvml.nvmlDeviceGetCount())]


def _bus(nvml: Any, handle: Any) -> str:
    """NVML writes eight digits of a domain, CUDA four, and each its own case."""
    domain, _, rest = _text(nvml.nvmlDeviceGetPciInfo(handle).busId).lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def names_by_bus() -> dict[str, str]:
    """llama.cpp's names of devices by their places on the bus; of two for one card, the one that it uses."""
    found: dict[str, str] = {}
    for native in local_gpus():
        properties = ffi.new("struct ggml_backend_dev_props *")
        lib.ggml_backend_dev_get_props(native, properties)
        if properties.device_id:
            found.setdefault(decoded(properties.device_id).lower(), decoded(lib.ggml_backend_dev_name(native)))
    return found


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
