"""RPC servers of llama.cpp's, whose devices are used like our own."""

from __future__ import annotations

import os
import re
import socket
import struct

from moebind import checks
from moebind._native import lib
from moebind.errors import MoebindError
from moebind.process import Device, describe, init, lock, native_devices

__all__ = ["add_rpc_server"]

#: Seconds that a server has to take a connection and to answer its first message.
RPC_TIMEOUT = 5.0
#: Servers in use; and those whose connections belong to the process that this one was forked from.
_endpoints: set[str] = set()
_of_parent: set[str] = set()


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
    if endpoint in _of_parent:
        raise MoebindError(
            f"the RPC server {endpoint} is connected to the process that this one was forked from, and llama.cpp would "
            "use that connection: use another server, or start a process instead of forking one"
        )
    with lock:
        _ask_rpc_server(endpoint)
        server = lib.ggml_backend_rpc_add_server(endpoint.encode())
        if not server:
            raise MoebindError(f"the RPC server {endpoint} offers no devices")
        lib.ggml_backend_register(server)
        _endpoints.add(endpoint)
        own = {lib.ggml_backend_reg_dev_get(server, i) for i in range(lib.ggml_backend_reg_dev_count(server))}
        return [describe(index, native) for index, native in enumerate(native_devices()) if native in own]


def remove_rpc_server(endpoint: str) -> None:
    """Take a server's devices out of the list. Nothing may use them any more."""
    with lock:
        _endpoints.discard(endpoint)
        # The registry returns the one that was added under this name, without asking the server.
        lib.moebind_rpc_remove_server(lib.ggml_backend_rpc_add_server(endpoint.encode()))


def _after_fork() -> None:
    _of_parent.update(_endpoints)
    for endpoint in tuple(_endpoints):
        remove_rpc_server(endpoint)


os.register_at_fork(after_in_child=_after_fork)
