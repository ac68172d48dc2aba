"""The process: backends, devices, RPC servers."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakSet

from moebind import checks
from moebind._native import LIBRARIES, CData, decoded, ffi, lib
from moebind._owner import Owner
from moebind.enums import DeviceType, NumaStrategy
from moebind.errors import MoebindError

__all__ = [
    "Device",
    "add_rpc_server",
    "devices",
    "init",
    "llama_cpp_version",
    "load_backends",
    "max_devices",
    "supports_gpu_offload",
    "supports_mlock",
    "supports_mmap",
    "supports_rpc",
    "system_info",
    "time_us",
]

#: Seconds that an RPC server has to take a connection and to answer its first message.
RPC_TIMEOUT = 5.0

_lock = threading.RLock()
_initialised = False
#: What a device is taken to have, where somebody said so (``loopback_device(memory=...)``).
capacities: dict[str, int] = {}
#: Models by the names of the devices that hold them, for a device that goes away.
users: dict[str, WeakSet[Owner]] = {}


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
        Bytes. An RPC server reports those of its machine.
    capacity : int
        Bytes that plans count on: what was told when the device was made, otherwise ``memory_total``.
    """

    index: int
    name: str
    description: str
    backend: str
    type: DeviceType
    memory_total: int = field(compare=False)
    memory_free: int = field(compare=False)
    capacity: int = field(compare=False)


def init(numa: NumaStrategy = NumaStrategy.DISABLED) -> None:
    """Initialise llama.cpp's backends.

    Every other call does this by itself; call it first only to choose a NUMA strategy. Idempotent and thread-safe.

    Parameters
    ----------
    numa
        How threads are placed on memory nodes. It can be chosen once, before anything else is done.

    Raises
    ------
    MoebindError
        When a strategy is asked for after the backends were initialised.

    Notes
    -----
    Stands on ``llama_backend_init``, ``llama_numa_init`` and, for loadable backends,
    ``ggml_backend_load_all_from_path``.

    Examples
    --------
    >>> moebind.init()
    """
    global _initialised
    allowed = [each for each in NumaStrategy if each is not NumaStrategy.MIRROR]
    strategy = checks.member("numa", numa, NumaStrategy, allowed)
    with _lock:
        if _initialised:
            if strategy is not NumaStrategy.DISABLED:
                raise MoebindError(
                    f"numa={strategy.name} comes too late: llama.cpp is initialised already; call moebind.init(numa) "
                    "before anything else"
                )
            return
        # Linked backends are registered already; those that were built as modules are not.
        if lib.ggml_backend_reg_count() == 0:
            load_backends()
        lib.llama_backend_init()
        if strategy is not NumaStrategy.DISABLED:
            lib.llama_numa_init(strategy)
        _initialised = True


def load_backends(path: str | os.PathLike[str] | None = None) -> None:
    """Load backends that were built as modules.

    Parameters
    ----------
    path
        A folder with files named ``libggml-*.so``; None is moebind's own. Of several variants of one backend, the best
        that this machine can run is taken.

    Raises
    ------
    NotADirectoryError
        If ``path`` is not a folder.

    Notes
    -----
    Stands on ``ggml_backend_load_all_from_path``.
    """
    if path is None:
        folder = LIBRARIES
    else:
        folder = Path(checks.path("path", path))
        if not folder.is_dir():
            raise NotADirectoryError(f"path is {str(folder)!r}, which is not a folder")
    with _lock:
        lib.ggml_backend_load_all_from_path(checks.text("path", str(folder)))


def native_devices() -> list[CData]:
    """The devices as ``ggml_backend_dev_t``, in order."""
    init()
    with _lock:
        return [lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count())]


def describe(index: int, native: CData) -> Device:
    """Read one device."""
    properties = ffi.new("struct ggml_backend_dev_props *")
    lib.ggml_backend_dev_get_props(native, properties)
    name = decoded(properties.name)
    return Device(
        index=index,
        name=name,
        description=decoded(properties.description),
        backend=decoded(lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(native))),
        type=DeviceType(properties.type),
        memory_total=properties.memory_total,
        memory_free=properties.memory_free,
        capacity=capacities.get(name) or properties.memory_total,
    )


def devices() -> list[Device]:
    """List the devices that llama.cpp can use.

    Returns
    -------
    list[Device]
        In llama.cpp's order; the CPU is one of them.

    Notes
    -----
    Stands on ``ggml_backend_dev_get`` and ``ggml_backend_dev_get_props``.

    Examples
    --------
    >>> [device.type.name for device in moebind.devices()]
    ['CPU']
    """
    return [describe(index, native) for index, native in enumerate(native_devices())]


def native_device(name: str) -> CData:
    """The ``ggml_backend_dev_t`` of that name."""
    found = {decoded(lib.ggml_backend_dev_name(native)): native for native in native_devices()}
    if name not in found:
        raise ValueError(f"there is no device {name!r}; there are {', '.join(found)}")
    return found[name]


def _ask_rpc_server(endpoint: str) -> None:
    """Connect and say HELLO, since libllama would end the process, or wait forever, where this raises."""
    match = re.fullmatch(r"([^:\s]+):(\d{1,5})", endpoint)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(f"endpoint is {endpoint!r}; it takes 'host:port' with a port from 1 to 65535 (IPv4 or a name)")
    request = bytes(lib.moebind_rpc_caps_size())
    reply_size = 4 + lib.moebind_rpc_caps_size()
    try:
        with socket.create_connection((match[1], int(match[2])), timeout=RPC_TIMEOUT) as connection:
            connection.settimeout(RPC_TIMEOUT)
            command = 14  # RPC_CMD_HELLO: ggml-rpc.cpp asserts that it always is
            connection.sendall(struct.pack("<BQ", command, len(request)) + request)
            reply = b""
            while len(reply) < 8 + reply_size:
                part = connection.recv(8 + reply_size - len(reply))
                if not part:
                    raise MoebindError(f"{endpoint} closed the connection: it is not an RPC server of llama.cpp's")
                reply += part
                if len(reply) >= 8 and struct.unpack_from("<Q", reply)[0] != reply_size:
                    raise MoebindError(f"{endpoint} answers, but not as an RPC server of llama.cpp's does")
    except OSError as error:
        raise MoebindError(f"the RPC server {endpoint} does not answer ({error}): check that it runs") from error
    major, minor = reply[8], reply[9]
    wanted = (lib.RPC_PROTO_MAJOR_VERSION, lib.RPC_PROTO_MINOR_VERSION)
    if major != wanted[0] or minor > wanted[1]:
        raise MoebindError(
            f"the RPC server {endpoint} speaks version {major}.{minor} of the protocol, this build {wanted[0]}."
            f"{wanted[1]}: use the same llama.cpp on both sides"
        )


def add_rpc_server(endpoint: str) -> list[Device]:
    """Make the devices of an RPC server usable.

    llama.cpp's RPC protocol has no authentication and no encryption: use it on networks that you trust. A server that
    stops while a model uses it ends this process.

    Parameters
    ----------
    endpoint
        ``"host:port"``.

    Returns
    -------
    list[Device]
        The server's devices; adding a server again returns the same ones.

    Raises
    ------
    ValueError
        If ``endpoint`` does not read as host and port.
    MoebindError
        If nothing answers there within 5 seconds, or something other than a matching RPC server does.

    Notes
    -----
    Stands on ``ggml_backend_rpc_add_server``.
    """
    checks.text("endpoint", endpoint)
    init()
    with _lock:
        _ask_rpc_server(endpoint)
        server = lib.ggml_backend_rpc_add_server(endpoint.encode())
        if not server:
            raise MoebindError(f"the RPC server {endpoint} offers no devices")
        lib.ggml_backend_register(server)
        own = {lib.ggml_backend_reg_dev_get(server, i) for i in range(lib.ggml_backend_reg_dev_count(server))}
        return [describe(index, native) for index, native in enumerate(native_devices()) if native in own]


def remove_rpc_server(endpoint: str) -> None:
    """Take a server's devices out of the list. Nothing may use them any more."""
    with _lock:
        # The registry returns the one that was added under this name, without asking the server.
        lib.moebind_rpc_remove_server(lib.ggml_backend_rpc_add_server(endpoint.encode()))


def supports_gpu_offload() -> bool:
    """Whether layers can go to another device: a GPU is there, or RPC is built in (``llama_supports_gpu_offload``)."""
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
    """llama.cpp's clock, in microseconds; the zero point means nothing (``llama_time_us``)."""
    return int(lib.llama_time_us())


def system_info() -> str:
    """The features of the backends in use, in one line (``llama_print_system_info``)."""
    init()
    return decoded(lib.llama_print_system_info())


def llama_cpp_version() -> str:
    """The version of the llama.cpp inside (``llama_version``)."""
    return decoded(lib.llama_version())
