"""Addresses that cannot be listened on, in words."""

from __future__ import annotations

import errno

__all__ = ["why_not"]


def why_not(host: str, port: int, error: OSError, advice: str = "") -> str:
    """Why the system refuses an address; ``advice`` is how else a port is found."""
    if error.errno == errno.EADDRINUSE:
        return f"{host}:{port} is in use: end what listens there, or choose another port{advice}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine"
    return f"{host}:{port} cannot be listened on: {error.strerror}"
