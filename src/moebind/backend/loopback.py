"""A device for machines without one: another process on this machine."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, SupportsIndex
from weakref import WeakSet

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.native import lib, own
from moebind._core.owner import close_all
from moebind._core.sizes import parse_memory
from moebind.backend.devices import Device, capacities, describe, leases, native_devices, users
from moebind.backend.rpc_servers import add_rpc_server, forget_server
from moebind.errors import MoebindError

__all__ = ["loopback_device"]

#: Seconds that a worker has to begin to serve.
START_TIMEOUT = 30.0
#: What begins a block.
_WITH = "with moebind.loopback_device() as device: ..."
#: The worker finds moebind where this process did, whatever lies in the current folder.
_WORKER = (
    "import sys; report, n_threads, *sys.path[:] = sys.argv[1:]; "
    "from moebind.backend.rpc_worker import serve_parent; serve_parent(int(report), int(n_threads))"
)
#: Ports that were used by this process: libllama would take a new worker for the old one.
_used_ports: set[int] = set()
#: Process ids of the workers, by device name: their resident memory is what a device really holds.
worker_pids: dict[str, int] = {}


def _start(n_threads: int) -> tuple[subprocess.Popen[bytes], list[Device], str]:
    while True:
        process, port = _worker(n_threads)
        try:
            if port not in _used_ports:
                _used_ports.add(port)
                endpoint = f"127.0.0.1:{port}"
                return process, add_rpc_server(endpoint), endpoint
        except BaseException:
            _stop(process)
            raise
        _stop(process)


def _worker(n_threads: int) -> tuple[subprocess.Popen[bytes], int]:
    """A process that serves, and the port that it listens on: nobody else can have that one."""
    import tempfile  # takes longer to import than the rest of this module

    port, report = os.pipe()
    with tempfile.TemporaryFile() as said, open(port, "rb") as told:
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, str(report), str(n_threads), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=[report],
                start_new_session=True,
            )
        finally:
            os.close(report)
        try:
            selected = select.select([told], [], [], START_TIMEOUT)
            line = told.readline() if selected[0] else b""
            if line:
                return process, int(line)
        except BaseException:
            _stop(process)
            raise
        _stop(process)
        said.seek(0)
        last = said.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        reason = last[0] if last else f"it did not begin to serve within {START_TIMEOUT:.0f} s"
        raise MoebindError(f"the worker process could not be started: {reason}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


class _Lease:
    """An object that models on the device hold: the worker ends when nobody holds it any more."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        # Not when the interpreter ends: what is freed after that still asks the worker, which ends by itself.
        weakref.finalize(self, self._end, process, os.getpid()).atexit = False

    @staticmethod
    def _end(process: subprocess.Popen[bytes], starter: int) -> None:
        if os.getpid() == starter:  # the child of a fork leaves it alone
            _stop(process)


class _Loopback(AbstractContextManager[Device]):
    """A device to come: there is one inside its ``with`` block."""

    def __init__(self, capacity: int | None, n_threads: int) -> None:
        self._block = _served(capacity, n_threads)

    def __enter__(self) -> Device:
        return self._block.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._block.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<loopback_device(), before its block: {_WITH}>"

    if not TYPE_CHECKING:  # type checkers would take it for any attribute

        def __getattr__(self, name: str) -> object:
            if name not in Device.__annotations__ and not hasattr(Device, name):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            raise AttributeError(
                f"loopback_device() has no {name} before its block begins, which starts the worker: write {_WITH}",
                name=name,
                obj=self,
            )


@explained()
def loopback_device(
    memory: SupportsIndex | str | None = None, n_threads: SupportsIndex = 1
) -> AbstractContextManager[Device]:
    """Start a worker process on this machine, and use its memory as that of a GPU.

    What goes to the device goes to the worker's memory and is computed there, through llama.cpp's RPC backend on
    127.0.0.1. So you can try out and measure placements without a graphics card. Leaving the ``with`` block closes the
    models that use the device and ends the worker, at the latest when the last view of their memory is gone.

    Parameters
    ----------
    memory
        Bytes that plans assume (``Device.capacity``), or a text such as ``"12GiB"``; None: what the worker reports,
        which is the machine's memory.
    n_threads
        How many threads it computes with.

    Returns
    -------
    AbstractContextManager[Device]
        For a ``with`` block, in which the device is there.

    Raises
    ------
    MoebindError
        If the worker does not start.

    Examples
    --------
    >>> with moebind.loopback_device() as device:
    ...     params = ModelParams(devices=[device]).with_cpu_moe_all()
    ...     model = Model.load_from_file("moe.gguf", params)
    """
    capacity = None if memory is None else parse_memory("memory", memory, low=1)
    return _Loopback(capacity, checks.integer("n_threads", n_threads, 1, checks.THREADS_MAX))


@contextmanager
def _served(capacity: int | None, n_threads: int) -> Iterator[Device]:
    process, found, endpoint = _start(n_threads)
    name = found[0].name
    lease = _Lease(process)
    leases[name] = own(lib.own_moebind_reference, id(lease))
    del lease  # it is what it is held by natively that counts
    try:
        if capacity is not None:
            capacities[name] = capacity
        worker_pids[name] = process.pid
        yield describe(found[0].index, native_devices()[found[0].index])
    finally:
        close_all(users.pop(name, WeakSet()), f"the device {name} was given up")
        capacities.pop(name, None)
        worker_pids.pop(name, None)
        forget_server(endpoint)
        del leases[name]
