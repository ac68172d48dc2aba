"""A process that serves its memory and processor as a device to other processes, with llama.cpp's RPC protocol.

``python -m moebind.backend.rpc_worker`` starts one by hand; ``loopback_device`` starts one by itself. It serves one
client at a time; others wait for their turn.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import SupportsIndex

from moebind._core import checks
from moebind._core.listening import why_not
from moebind._core.native import CData, decoded, ffi, lib
from moebind._core.shown import shown
from moebind.backend.devices import Device, describe, devices, each_card_once, native_device, native_devices
from moebind.enums import DeviceType

#: Where a worker listens.
HOST, PORT = "127.0.0.1", 50052
#: The warning for whoever serves a network.
WARNING = (
    "warning: llama.cpp's RPC has neither authentication nor encryption. Whoever reaches {host}:{port} can use this "
    "machine's memory and processor, read what others compute on it, and attack the process. Serve networks that you "
    "trust only, better still a tunnel (ssh -L {port}:127.0.0.1:{port})"
)


def serve(host: str, port: int, n_threads: int, devices: Sequence[CData], cache: str | None = None) -> None:
    """Serve until the process ends. Returns when the address cannot be served.

    Parameters
    ----------
    host, port
        Where to listen: an IPv4 address or a name of this machine's.
    n_threads
        Threads that a processor among the devices computes with.
    devices
        What is served, as ``ggml_backend_dev_t``.
    cache
        A folder for copies of large tensors, which are then not sent again.

    Notes
    -----
    Uses ``ggml_backend_rpc_start_server``.
    """
    served = ffi.new("ggml_backend_dev_t[]", list(devices))
    folder = ffi.NULL if cache is None else ffi.new("char[]", os.fsencode(cache))
    lib.ggml_backend_rpc_start_server(f"{host}:{port}".encode(), folder, n_threads, len(served), served)


def serve_parent(report: int, n_threads: int) -> None:
    """Serve this machine's processor until standard input ends. ``loopback_device`` starts this.

    The system chooses the port, which is written to the file ``report`` once it is listened on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us
    threading.Thread(target=_end_with_input, daemon=True).start()
    served = _of_type(DeviceType.CPU)  # loads the RPC backend, where it is not linked
    lib.moebind_rpc_report_port(report)
    serve("127.0.0.1", 0, n_threads, served)
    sys.exit("no port can be served")


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _of_type(*types: DeviceType) -> list[CData]:
    found = [device for device in enumerate(native_devices()) if lib.ggml_backend_dev_type(device[1]) in types]
    # Only those of these types are asked: CUDA takes memory for itself when it is.
    return [native_device(device.name) for device in each_card_once(describe(*device) for device in found)]


def _chosen(names: Sequence[str] | None) -> list[CData]:
    """The devices of these names; without any, the GPUs, or else the processor."""
    if not names:
        return _of_type(DeviceType.GPU, DeviceType.IGPU) or _of_type(DeviceType.CPU)
    known = {decoded(lib.ggml_backend_dev_name(device)): device for device in native_devices()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no device {shown(unknown[0])}; there are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, UnicodeError):
        raise ValueError(
            f"--host is {shown(host)}; it takes an IPv4 address or a name of this machine, such as {HOST}"
        ) from None


def _check_free(host: str, port: int) -> None:
    """llama.cpp would only say that it failed, after everything else that it says."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as it does
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise OSError(why_not(host, port, error)) from error


def _arguments(given: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m moebind.backend.rpc_worker",
        description="Serve this machine's GPUs, or else its processor and memory, to llama.cpp on other machines.",
        epilog="There, moebind.add_rpc_server('HOST:PORT') makes the devices usable.",
    )
    parser.add_argument("--host", default=HOST, help="the address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help="the port to listen on (50052)")
    parser.add_argument("--threads", type=int, help="threads that a processor computes with (default: one per core)")
    parser.add_argument("--device", action="append", metavar="NAME", help="what to serve; can be given several times")
    parser.add_argument("--cache", metavar="FOLDER", help="keep large tensors there, so that they are sent once")
    parser.add_argument(
        "--allow-network", action="store_true", help="listen on an address that other machines can reach"
    )
    return parser, parser.parse_args(given)


def run(
    host: str = HOST,
    port: SupportsIndex = PORT,
    n_threads: SupportsIndex | None = None,
    device_names: Sequence[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    *,
    allow_network: bool = False,
    listening: Callable[[list[Device]], None] | None = None,
) -> None:
    """Serve until the process is ended, after the checks and the warning that a network needs.

    Parameters
    ----------
    host, port
        Where to listen.
    n_threads
        Threads that a processor computes with; None: one a core.
    device_names
        What is served; None: the GPUs, or else the processor.
    cache
        A folder for copies of large tensors.
    allow_network
        Listen on an address that other machines can reach.
    listening
        Called with the devices that are served, in a thread, once it listens.

    Raises
    ------
    ValueError, OSError
        If an argument is out of range, there is no such device, other machines could reach it and may not, or the
        address is in use.
    SystemExit
        If the address cannot be served.
    """
    number = checks.integer("--port", port, 1, 65535)
    threads = checks.integer(
        "--threads", lib.moebind_default_n_threads() if n_threads is None else n_threads, 1, checks.THREADS_MAX
    )
    address = checks.text("--host", host).decode()
    local = _is_loopback(address)
    folder = None if cache is None else checks.path("--cache", cache)
    served = _chosen(device_names)
    if not local and not allow_network:
        raise ValueError(
            f"--host {address} can be reached from other machines, and llama.cpp's RPC has no authentication: "
            "add --allow-network if you trust that network"
        )
    _check_free(address, number)
    if not local:
        print(WARNING.format(host=address, port=number), file=sys.stderr, flush=True)
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
    if listening is not None:
        names = {decoded(lib.ggml_backend_dev_name(device)) for device in served}
        _once_it_listens(listening, [each for each in devices() if each.name in names])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would not see it
    serve(address, number, threads, served, folder)
    sys.exit(f"{address}:{number} cannot be served")


def _once_it_listens(listening: Callable[[list[Device]], None], served: list[Device]) -> None:
    read, report = os.pipe()
    lib.moebind_rpc_report_port(report)  # which closes it

    def wait() -> None:
        with open(read, "rb") as reported:
            if reported.readline():
                listening(served)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and serve until the process is ended.

    Parameters
    ----------
    arguments
        Those of the command line; None: the process's.
    """
    parser, given = _arguments(arguments)
    try:
        run(given.host, given.port, given.threads, given.device, given.cache, allow_network=given.allow_network)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
