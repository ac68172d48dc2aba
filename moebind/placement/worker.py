"""A process that serves its memory and processor as a device to other processes, with llama.cpp's RPC protocol.

``python -m moebind.placement.worker`` starts one by hand; ``loopback_device`` starts one by itself. It serves one
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
from collections.abc import Sequence

from moebind import checks
from moebind._native import CData, decoded, ffi, lib
from moebind.enums import DeviceType
from moebind.process import native_devices

#: What who serves a network is told.
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


def serve_parent(port: int, n_threads: int) -> None:
    """What ``loopback_device`` starts: serve this machine's processor until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us
    threading.Thread(target=_end_with_input, daemon=True).start()
    serve("127.0.0.1", port, n_threads, _of_type(DeviceType.CPU))
    sys.exit(f"port {port} cannot be served")


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _of_type(*types: DeviceType) -> list[CData]:
    return [device for device in native_devices() if lib.ggml_backend_dev_type(device) in types]


def _chosen(names: Sequence[str] | None) -> list[CData]:
    """The devices of these names; without any, the GPUs, or else the processor."""
    if not names:
        return _of_type(DeviceType.GPU, DeviceType.IGPU) or _of_type(DeviceType.CPU)
    known = {decoded(lib.ggml_backend_dev_name(device)): device for device in native_devices()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no device {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback


def _arguments(given: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m moebind.placement.worker",
        description="Serve this machine's GPUs, or else its processor and memory, to llama.cpp on other machines.",
        epilog="There, moebind.add_rpc_server('HOST:PORT') makes the devices usable.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=50052, help="the port to listen on (50052)")
    parser.add_argument("--threads", type=int, help="threads that a processor computes with (default: one per core)")
    parser.add_argument("--device", action="append", metavar="NAME", help="what to serve; can be given several times")
    parser.add_argument("--cache", metavar="FOLDER", help="keep large tensors there, so that they are sent once")
    parser.add_argument(
        "--allow-network", action="store_true", help="listen on an address that other machines can reach"
    )
    return parser, parser.parse_args(given)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and serve until the process is ended.

    Parameters
    ----------
    arguments
        Those of the command line; None: the process's.
    """
    parser, given = _arguments(arguments)
    try:
        port = checks.integer("--port", given.port, 1, 65535)
        threads = lib.moebind_default_n_threads() if given.threads is None else given.threads
        n_threads = checks.integer("--threads", threads, 1, checks.THREADS_MAX)
        host = checks.text("--host", given.host).decode()
        local = _is_loopback(host)
        cache = None if given.cache is None else checks.path("--cache", given.cache)
        devices = _chosen(given.device)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not local and not given.allow_network:
        parser.error(
            f"--host {host} can be reached from other machines, and llama.cpp's RPC has no authentication: "
            "add --allow-network if you trust that network"
        )
    if not local:
        print(WARNING.format(host=host, port=port), file=sys.stderr, flush=True)
    if cache is not None:
        os.makedirs(cache, exist_ok=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing of Python's runs any more
    serve(host, port, n_threads, devices, cache)
    sys.exit(f"{host}:{port} cannot be served")


if __name__ == "__main__":
    main()
