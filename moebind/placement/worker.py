"""A process that serves its memory and processor as a device; ``loopback_device`` starts it.

Its arguments are a port and a number of threads. It listens on the loopback interface only, and ends when its standard
input does: when whoever started it is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from moebind._native import ffi, lib
from moebind.enums import DeviceType
from moebind.process import native_devices


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Serve until the end; ``ggml_backend_rpc_start_server`` does not return."""
    port, n_threads = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us
    threading.Thread(target=_end_with_input, daemon=True).start()
    chosen = [device for device in native_devices() if lib.ggml_backend_dev_type(device) == DeviceType.CPU]
    served = ffi.new("ggml_backend_dev_t[]", chosen)
    lib.ggml_backend_rpc_start_server(f"127.0.0.1:{port}".encode(), ffi.NULL, n_threads, len(chosen), served)
    sys.exit(f"port {port} cannot be served")
