"""RPC servers that are none, or another version's, and what adding one says about them."""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import moebind
from moebind import MoebindError, RpcServerError

sys.path.insert(0, str(Path(__file__).parent))
from relay import exactly  # beside this file

#: The answer to HELLO: three numbers of the version, one byte of nothing, and capabilities.
HELLO_SIZE = 28


@pytest.mark.parametrize(
    "endpoint", ["", "localhost", "localhost:", "localhost:0", "localhost:70000", "[::1]:80", "a b:1", ":5", "a:1:2"]
)
def test_endpoints_that_do_not_read(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint is"):
        moebind.add_rpc_server(endpoint)


@pytest.mark.parametrize("endpoint", [None, 5, b"localhost:1", "a\0b:1", "\ud800:1"])
def test_endpoints_of_wrong_types(endpoint: object) -> None:
    with pytest.raises((TypeError, ValueError), match="endpoint"):
        moebind.add_rpc_server(endpoint)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e12, "5", [1]])
def test_bad_timeouts(timeout: object) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout"):
        moebind.add_rpc_server("127.0.0.1:1", timeout)  # type: ignore[arg-type]


def request(connection: socket.socket) -> bool:
    """Read one; False when there is none any more."""
    head = exactly(connection, 9)
    return head is not None and exactly(connection, struct.unpack_from("<Q", head, 1)[0]) is not None


@contextmanager
def server(*replies: bytes | None) -> Iterator[str]:
    """A server that answers whatever comes with these, one after the other; None: it says nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            with suppress(OSError):
                for reply in replies:
                    if not request(connection) or reply is None:
                        break
                    connection.sendall(reply)
                else:
                    connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in connections:
            connection.close()


def answer(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


PROTOCOL = moebind.lib.RPC_PROTO_MAJOR_VERSION


def hello(major: int = PROTOCOL, minor: int = 0) -> bytes:
    return answer(bytes([major, minor]) + bytes(HELLO_SIZE - 2))


MEMORY = answer(struct.pack("<QQ", 5, 10))


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([b""], "closed the connection"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "answers, but not as an RPC server"),
        ([b"\x1c\0\0\0\0\0\0\0\x07"], "closed the connection"),
        ([b"\x1c\0\0"], "closed the connection"),
        ([b"\xff" * 8], "not as an RPC server"),
        ([answer(b"")], "not as an RPC server"),
        ([hello(PROTOCOL - 1)], f"speaks version {PROTOCOL - 1}.0 of the protocol, this build {PROTOCOL}.0"),
        ([hello(PROTOCOL, 9)], f"speaks version {PROTOCOL}.9"),
        ([hello(0)], "speaks version 0.0"),
        ([hello()], "closed the connection"),
        ([hello() + b"x"], "sent something that it was not asked for"),
        ([hello(), b"\xff" * 24], "not as an RPC server"),
        ([hello(), answer(struct.pack("<QQ", 10, 5))], "an answer that cannot be true"),
        ([hello(), MEMORY], "not as an RPC server"),
    ],
)
def test_servers_that_are_something_else(replies: list[bytes], message: str) -> None:
    with server(*replies) as endpoint:
        started = time.monotonic()
        with pytest.raises(RpcServerError, match=message) as raised:
            moebind.add_rpc_server(endpoint)
        assert time.monotonic() - started < 60  # it does not wait as long as a server may be silent
        assert raised.value.endpoint == endpoint
        assert endpoint in str(raised.value)
    assert endpoint not in {device.description for device in moebind.devices()}


@pytest.mark.parametrize(
    ("count", "message"),
    [(0, "offers no devices"), (257, "cannot be true"), (2**32 - 1, "cannot be true")],
)
def test_a_wrong_number_of_devices(count: int, message: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for last in (MEMORY, answer(struct.pack("<I", count))):
            connection, _ = listener.accept()
            with connection:
                for reply in (hello(), last):
                    request(connection)
                    connection.sendall(reply)
                connection.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(RpcServerError, match=message):
        moebind.add_rpc_server(f"127.0.0.1:{listener.getsockname()[1]}")
    thread.join()
    listener.close()


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moebind.backend.rpc_servers.CONNECT_TIMEOUT", 0.3)
    with server(None) as endpoint:
        with pytest.raises(RpcServerError, match=r"said nothing for 0.3 seconds: it hangs, or another process uses it"):
            moebind.add_rpc_server(endpoint)


def test_a_server_that_says_nothing_after_the_greeting() -> None:
    with server(hello(), None) as endpoint:
        with pytest.raises(RpcServerError, match=r"said nothing for 0.2 seconds"):
            moebind.add_rpc_server(endpoint, timeout=0.2)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RpcServerError, match=rf"127.0.0.1:{port} does not answer \(Connection refused\)"):
        moebind.add_rpc_server(f"127.0.0.1:{port}")


def test_a_name_that_is_none() -> None:
    with pytest.raises(RpcServerError, match="there.invalid:5 does not answer"):
        moebind.add_rpc_server("there.invalid:5")


def test_it_is_a_moebind_error() -> None:
    assert issubclass(RpcServerError, MoebindError)
    assert str(RpcServerError("text", "a:1")) == "text"
