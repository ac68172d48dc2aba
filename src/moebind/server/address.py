"""Where a server listens: checked before it is started."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import SupportsIndex

from moebind._core import checks
from moebind._core.listening import why_not
from moebind._core.shown import shown
from moebind.errors import ServerError

__all__ = ["PORT", "Address", "parse"]

#: The port of the command line, which is ollama's and shimmy's too.
PORT = 11435
#: The ports that the system gives to connections; and one from which on, below these, few programs listen.
PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
QUIET = 20000


@dataclass(frozen=True)
class Address:
    """An address of this machine's that is free.

    Attributes
    ----------
    host : str
        As it was given.
    port : int
        The port, also where it was chosen here.
    local : bool
        Whether only this machine reaches it.
    """

    host: str
    port: int
    local: bool

    @classmethod
    def free(cls, host: str, port: SupportsIndex, *, guarded: bool) -> Address:
        """The address, if it can be listened on; with port 0, one that is free.

        ``guarded`` is whether other machines may reach it, since there is a key, or its user trusts them.

        Raises
        ------
        ValueError
            If there is no such host, the port is out of range, or other machines would reach it unguarded. All of this
            is said before the port is tried.
        ServerError
            If somebody else listens there, or it is no address of this machine.
        """
        name = checks.text("host", host).decode()
        number = checks.integer("port", port, 0, 65535)
        try:
            found = socket.getaddrinfo(name, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError):
            raise ValueError(
                f"host is {shown(name)}; it takes an address or a name of this machine, such as 127.0.0.1"
            ) from None
        if not name:
            raise ValueError("host is empty; it takes an address or a name of this machine, such as 127.0.0.1")
        local = all(ipaddress.ip_address(each[4][0]).is_loopback for each in found)
        if not (local or guarded):
            raise ValueError(
                f"host is {shown(name)}, which other machines can reach, and there is no key: whoever reaches it could "
                "use the models, and read what others ask them. Set api_key, or allow_network if you trust that network"
            )
        family, _, _, _, where = found[0]
        for candidate in [number] if number else [*_quiet_ports(), 0]:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as llama-server does
                try:
                    probe.bind((where[0], candidate, *where[2:]))
                    probe.listen(1)
                except OSError as error:
                    if number == 0 != candidate and error.errno == errno.EADDRINUSE:
                        continue
                    raise ServerError(why_not(name, number, error, " (0 takes any that is free)")) from error
                number = int(probe.getsockname()[1])
                break
        return cls(name, number, local)

    @property
    def client(self) -> str:
        """The host as a client on this machine reaches it."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # every address

    @property
    def url(self) -> str:
        """The beginning of what is asked of it."""
        return f"http://{f'[{self.client}]' if ':' in self.client else self.client}:{self.port}"


def parse(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; the host of an IPv6 address is in brackets.

    Raises
    ------
    ValueError
        If it is none.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not (colon and host and port.isascii() and port.isdecimal()):
        raise ValueError(f"--bind is {shown(text)}; it takes HOST:PORT, such as 127.0.0.1:{PORT} or [::1]:{PORT}")
    return host, int(port)


def _quiet_ports() -> list[int]:
    """Some ports at random of which the system gives none to connections: they stay free until they are listened on.

    They also stay so while a server that died is started again.
    """
    try:
        with open(PORT_RANGE, encoding="ascii") as file:
            first = int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return []
    return (
        [QUIET + int.from_bytes(os.urandom(4), "little") % (first - QUIET) for _ in range(20)] if first > QUIET else []
    )
