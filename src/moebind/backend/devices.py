"""The process: backends, devices, RPC servers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakSet

from moebind._core import checks
from moebind._core.fork import held_during_fork
from moebind._core.native import LIBRARIES, CData, decoded, ffi, lib
from moebind._core.owner import Owner
from moebind._core.shown import shown
from moebind.enums import DeviceType, NumaStrategy
from moebind.errors import MoebindError, NativeError

__all__ = [
    "Device",
    "backends",
    "default_devices",
    "devices",
    "init",
    "load_backends",
    "max_devices",
    "supports_gpu_offload",
    "supports_mlock",
    "supports_mmap",
    "supports_rpc",
    "system_info",
    "time_us",
]

#: Held while the list of devices is read or changed.
lock = held_during_fork(threading.RLock())
_initialised = False
#: Backends whose drivers have threads and handles that a fork does not copy.
GPU_BACKENDS = (b"CUDA", b"ROCm", b"MUSA", b"Vulkan", b"SYCL", b"OpenCL", b"CANN")
#: In the child of a fork: how many devices only its parent can use.
_left_to_parent = 0
#: Bytes that devices are taken to have, by name, where somebody said so (``loopback_device(memory=...)``).
capacities: dict[str, int] = {}
#: Models by the names of the devices that hold them, for a device that goes away.
users: dict[str, WeakSet[Owner]] = {}
#: Owned pointers that keep a device there, by its name. Models on it hold them natively, so that they are freed first.
leases: dict[str, CData] = {}


@dataclass(frozen=True)
class Device:
    """A device that llama.cpp can use, as it was when it was listed.

    Attributes
    ----------
    index : int
        Its place in :func:`devices`.
    name : str
        llama.cpp's name for it, such as ``"CUDA0"``, ``"RPC0"`` or ``"CPU"``.
    description : str
        What it is, for people.
    backend : str
        Which backend drives it.
    type : DeviceType
        What kind of device it is.
    memory_total, memory_free : int
        Bytes. An RPC server reports those of its machine; 0 if it does not answer.
    capacity : int
        Bytes that plans assume: the ``memory`` that the device was made with, otherwise ``memory_total``.
    card : str
        The card that it is, by its place on the PCI bus, such as ``"0000:01:00.0"``; empty if the backend does not say.
        Two backends may list one card, such as ``CUDA0`` and ``Vulkan0``: llama.cpp uses the one that comes first.
    """

    index: int
    name: str
    description: str
    backend: str
    type: DeviceType
    memory_total: int = field(compare=False)
    memory_free: int = field(compare=False)
    capacity: int = field(compare=False)
    card: str = field(default="", compare=False)


def init(numa: NumaStrategy = NumaStrategy.DISABLED) -> None:
    """Initialise llama.cpp's backends.

    Every other call does this by itself; call it first only to choose a NUMA strategy. Idempotent and thread-safe.

    Parameters
    ----------
    numa
        How threads are placed on memory nodes. You can choose it only once, before any other call.

    Raises
    ------
    MoebindError
        If a strategy is chosen after the backends were initialised.

    Notes
    -----
    Uses ``llama_backend_init``, ``llama_numa_init`` and, for loadable backends,
    ``ggml_backend_load_all_from_path``.

    Examples
    --------
    >>> moebind.init()
    """
    global _initialised
    allowed = [each for each in NumaStrategy if each is not NumaStrategy.MIRROR]
    strategy = checks.member("numa", numa, NumaStrategy, allowed)
    with lock:
        if _initialised:
            if strategy is not NumaStrategy.DISABLED:
                raise MoebindError(
                    f"numa={strategy.name} comes too late: llama.cpp is initialised already; call moebind.init(numa) "
                    "before anything else"
                )
            return
        # Linked backends are registered already, as are CUDA and Vulkan; others that were built as modules are not.
        if not lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU):
            load_backends()
        lib.llama_backend_init()
        lib.moebind_make_tables()
        if strategy is not NumaStrategy.DISABLED:
            lib.llama_numa_init(strategy)
        _initialised = True


def load_backends(path: str | os.PathLike[str] | None = None) -> None:
    """Load backends that were built as modules.

    Parameters
    ----------
    path
        A folder with files named ``libggml-*.so``; None: moebind's own. If a backend has several variants, the best one
        that this machine can run is loaded.

    Raises
    ------
    NotADirectoryError
        If ``path`` is not a folder.

    Notes
    -----
    Uses ``ggml_backend_load_all_from_path``.
    """
    if path is None:
        folder = LIBRARIES
    else:
        folder = checks.path("path", path)
        if not os.path.isdir(folder):
            raise NotADirectoryError(f"path is {folder!r}, which is not a folder")
    with lock:
        lib.ggml_backend_load_all_from_path(checks.text("path", folder))


def _leave_devices() -> None:
    """Take GPUs out of the list in the child of a fork: they answer its calls with errors, or never."""
    global _left_to_parent
    if _initialised:
        _left_to_parent += sum(int(lib.moebind_leave_devices(name)) for name in GPU_BACKENDS)


os.register_at_fork(after_in_child=_leave_devices)


def fork_hint() -> str:
    """A hint for messages about a device that is not there: in the child of a fork, why; otherwise empty."""
    if not _left_to_parent:
        return ""
    return (
        ". The GPUs are those of the process that this one was forked from: start a process instead of forking one "
        "(multiprocessing's 'spawn')"
    )


def native_devices() -> list[CData]:
    """The devices as ``ggml_backend_dev_t``, in order."""
    init()
    with lock:
        return [lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count())]


def local_gpus() -> list[CData]:
    """GPUs of this machine; those of RPC servers, workers of ours among them, come and go."""
    return [
        native
        for native in native_devices()
        if lib.ggml_backend_dev_type(native) in {DeviceType.GPU, DeviceType.IGPU}
        and decoded(lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(native))) != "RPC"
    ]


def describe(index: int, native: CData) -> Device:
    """Read one device."""
    properties = ffi.new("struct ggml_backend_dev_props *")
    name, description = decoded(lib.ggml_backend_dev_name(native)), decoded(lib.ggml_backend_dev_description(native))
    backend = decoded(lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(native)))
    properties.type = lib.ggml_backend_dev_type(native)
    with suppress(NativeError):  # an RPC server that is gone; a load says so
        lib.ggml_backend_dev_get_props(native, properties)
    if backend == "RPC" and lib.moebind_rpc_state(description.encode(), ffi.NULL, 0) == lib.MOEBIND_RPC_SERVER_LOST:
        properties.memory_total = properties.memory_free = 0
    return Device(
        index=index,
        name=name,
        description=description,
        backend=backend,
        type=DeviceType(properties.type),
        memory_total=properties.memory_total,
        memory_free=properties.memory_free,
        capacity=capacities.get(name) or properties.memory_total,
        card="" if properties.device_id == ffi.NULL else decoded(properties.device_id),
    )


def devices() -> list[Device]:
    """List the devices that llama.cpp can use.

    Returns
    -------
    list[Device]
        In llama.cpp's order; the CPU is one of them.

    Notes
    -----
    Uses ``ggml_backend_dev_get`` and ``ggml_backend_dev_get_props``.

    Examples
    --------
    >>> [device.type.name for device in moebind.devices()]
    ['CPU']
    """
    return [describe(index, native) for index, native in enumerate(native_devices())]


def backends() -> list[str]:
    """List the backends that were built and can be used here.

    Returns
    -------
    list[str]
        Their names, such as ``"CUDA"``, ``"RPC"`` and ``"CPU"``, in llama.cpp's order. A backend may have no device:
        RPC has none before :func:`add_rpc_server`.

    Notes
    -----
    Uses ``ggml_backend_reg_get`` and ``ggml_backend_reg_name``.

    Examples
    --------
    >>> "CPU" in moebind.backends()
    True
    """
    init()
    with lock:
        return [
            decoded(lib.ggml_backend_reg_name(lib.ggml_backend_reg_get(at)))
            for at in range(lib.ggml_backend_reg_count())
        ]


def default_devices() -> list[Device]:
    """List the devices that take a model's layers where nothing else is said.

    Returns
    -------
    list[Device]
        The RPC servers', then this machine's GPUs; integrated ones only if there are no others. Empty if everything
        stays on the CPU.

    Notes
    -----
    llama.cpp chooses so where ``ModelParams.devices`` is None. Of a card that two backends know, it takes one.

    Examples
    --------
    >>> [device.name for device in moebind.default_devices()]
    []
    """
    remote: list[Device] = []
    gpus: list[Device] = []
    integrated: list[Device] = []
    cards: set[str] = set()
    for device in devices():
        if device.type == DeviceType.IGPU and (not integrated or device.backend == integrated[-1].backend):
            integrated.append(device)
        elif device.type == DeviceType.GPU and device.backend == "RPC":
            remote.append(device)
        elif device.type == DeviceType.GPU and device.card not in cards:
            gpus.append(device)
            cards |= {device.card} - {""}
    return [*remote, *(gpus or integrated)]


def native_device(name: str) -> CData:
    """The ``ggml_backend_dev_t`` of that name."""
    found = {decoded(lib.ggml_backend_dev_name(native)): native for native in native_devices()}
    if name not in found:
        raise ValueError(f"there is no device {shown(name)}; there are {', '.join(found)}{fork_hint()}")
    return found[name]


def supports_gpu_offload() -> bool:
    """Whether this build could offload layers (``llama_supports_gpu_offload``).

    RPC is always built in, so that this is True on machines without a GPU, too: a server may be added at any time.
    :func:`devices` has the devices that are there.
    """
    init()
    return bool(lib.llama_supports_gpu_offload())


def supports_mmap() -> bool:
    """Whether model files can be mapped on this system (``llama_supports_mmap``)."""
    return bool(lib.llama_supports_mmap())


def supports_mlock() -> bool:
    """Whether memory can be locked on this system (``llama_supports_mlock``)."""
    return bool(lib.llama_supports_mlock())


def supports_rpc() -> bool:
    """Whether RPC servers can be used (``llama_supports_rpc``)."""
    init()
    return bool(lib.llama_supports_rpc())


def max_devices() -> int:
    """The most devices that one model can be spread over (``llama_max_devices``)."""
    return int(lib.llama_max_devices())


def time_us() -> int:
    """llama.cpp's clock, in microseconds from an arbitrary zero (``llama_time_us``)."""
    return int(lib.llama_time_us())


def backend_state(backend: str) -> str:
    """Whether ``"CUDA"`` or ``"Vulkan"`` was built, with what or why not, and why it is not used here if it was."""
    init()
    unused = _unused(backend)
    return decoded(lib.moebind_built(backend.encode())) + (f"; but it is not used: {unused}" if unused else "")


def why_no_card(backend: str) -> str:
    """Why this backend uses no card, in a few words; the doctor has more."""
    init()
    if not decoded(lib.moebind_built(backend.encode())).startswith("in"):
        return f"{backend} is not in this build"
    if any(each.backend == backend for each in devices()):
        return f"{backend} sees a card"
    return f"{backend} is not used: {_unused(backend) or 'it sees no card'}"


def _unused(backend: str) -> str:
    """Why a backend that was built is not used; or nothing."""
    return decoded(lib.moebind_unused(backend.encode()))


def of_one_card(chosen: Iterable[Device]) -> tuple[Device, Device] | None:
    """Two of these that are one card, which backends list each for itself; None if each is another."""
    found: dict[str, Device] = {}
    for device in chosen:
        if device.card and found.setdefault(device.card, device).backend != device.backend:
            return found[device.card], device
    return None


def check_cards(name: str, chosen: Iterable[Device]) -> None:
    """Refuse two devices that are one card: their memory would be counted twice."""
    doubled = of_one_card(chosen)
    if doubled is not None:
        first, second = doubled
        raise ValueError(
            f"{name} has {first.name} and {second.name}, which are one card ({first.card}) by way of two backends; "
            "give one of them"
        )


def each_card_once(chosen: Iterable[Device]) -> list[Device]:
    """These without those whose card another backend lists before them, as llama.cpp uses them."""
    kept: list[Device] = []
    for device in chosen:
        if of_one_card([*kept, device]) is None:
            kept.append(device)
    return kept


def for_tensor_split() -> list[CData]:
    """The devices that llama.cpp would cut tensors up for; it would take a card once for each backend that lists it."""
    host = lib.ggml_backend_cpu_buffer_type()
    chosen = [native_device(device.name) for device in each_card_once(devices())]
    return [native for native in chosen if lib.ggml_backend_dev_buffer_type(native) != host]


def system_info() -> str:
    """The features of the backends in use, in one line (``llama_print_system_info``)."""
    init()
    return decoded(lib.llama_print_system_info())
