"""Workers started by hand, as on another machine, and what can stand between them and moebind."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

import moebind

#: The protocol's commands, by their number (``enum rpc_cmd`` of ggml-rpc.cpp).
COMMANDS = [
    "alloc_buffer", "get_alignment", "get_max_size", "buffer_get_base", "free_buffer", "buffer_clear", "set_tensor",
    "set_tensor_hash", "get_tensor", "copy_tensor", "graph_compute", "get_device_memory", "init_tensor",
    "get_alloc_size", "hello", "device_count", "graph_recompute", "memset_tensor",
]  # fmt: skip
ANSWERED = {
    "alloc_buffer", "get_alignment", "get_max_size", "buffer_get_base", "set_tensor_hash", "get_tensor", "copy_tensor",
    "get_device_memory", "get_alloc_size", "hello", "device_count",
}  # fmt: skip
GARBAGE = b"\xf3\x9d" * 40


How = str | bytes | tuple[str, bytes]


class Relay:
    """Listens, and passes everything on to ``target`` ("host:port"), but for what ``misbehave`` was told.

    ``misbehave(command, how)``: from the next such command on, in place of an answer: "close" the connection, "reset"
    it, say nothing ("hang"), send "garbage", half of an answer ("half"), or bytes (an answer with these in it);
    ("send", bytes): those as they are, each time.
    """

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self._target = (host, int(port))
        # An address of its own: what a test left behind may still hold a connection to an earlier one.
        self._listener = socket.create_server(("127.0.0.1", unused_port()))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._trigger: tuple[str, How] | None = None
        self._open: list[socket.socket] = []
        self._done = threading.Event()
        #: What came, in order.
        self.seen: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def misbehave(self, command: str, how: How) -> None:
        assert command == "any" or command in COMMANDS
        self._trigger = (command, how)
        if how == "hang" or isinstance(how, tuple):  # which may be less than is waited for; others may be slow
            moebind.lib.moebind_rpc_timeouts(self.endpoint.encode(), 300, 300)

    def behave(self) -> None:
        self._trigger = None

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        for each in [self._listener, *self._open]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            self._open += [client, server]
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(OSError):
                while self._one(client, server):
                    pass
            client.close()
            server.close()

    def _one(self, client: socket.socket, server: socket.socket) -> bool:
        """Pass one command and its answer on; False at the end."""
        head = exactly(client, 9)
        if head is None:
            return False
        number, size = struct.unpack("<BQ", head)
        command = COMMANDS[number]
        self.seen.append(command)
        payload = exactly(client, size)
        if payload is None:
            return False
        if self._trigger is not None and self._trigger[0] in (command, "any"):
            return self._misbehave(client, self._trigger[1])
        server.sendall(head + payload)
        if command in ANSWERED:
            length = exactly(server, 8)
            answer = None if length is None else exactly(server, struct.unpack("<Q", length)[0])
            if length is None or answer is None:
                return False
            client.sendall(length + answer)
        return True

    def _misbehave(self, client: socket.socket, how: How) -> bool:
        if isinstance(how, bytes):
            client.sendall(struct.pack("<Q", len(how)) + how)
            self.behave()
            return True
        if isinstance(how, tuple):
            client.sendall(how[1])
            return True
        if how == "hang":
            self._done.wait()
        elif how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "half":
            client.sendall(struct.pack("<Q", 16)[: 3 + os.getpid() % 5])
        elif how == "garbage":
            client.sendall(GARBAGE)
            self._done.wait(0.05)
        return False


def exactly(connection: socket.socket, size: int) -> bytes | None:
    """So many bytes; None when the connection ends before."""
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 2**20))
        if not part:
            return None
        parts += part
    return bytes(parts)


#: Ports that this process had relays on.
_used_ports: set[int] = set()


def unused_port() -> int:
    """One that no relay had before."""
    while (port := free_port()) in _used_ports:
        pass
    _used_ports.add(port)
    return port


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def worker_process(
    host: str = "127.0.0.1", port: int = 0, more: tuple[str, ...] = (), inside: tuple[str, ...] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A worker and its endpoint; ``inside`` begins the command, for another network namespace."""
    port = port or (50052 if inside else free_port(host))
    command = [*inside, sys.executable, "-m", "moebind.backend.rpc_worker", "--host", host, "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--device", "CPU", *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            assert process.poll() is None
            with suppress(OSError):
                socket.create_connection((host, port), timeout=1).close()
                break
            time.sleep(0.02)
        yield process, f"{host}:{port}"
    finally:
        process.kill()
        process.wait()
