"""Addresses that cannot be listened on, in words."""

from __future__ import annotations

import errno
import os

import pytest

from moebind._core.listening import why_not


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EADDRINUSE, "a:1 is in use: end what listens there, or choose another port (0)"),
        (errno.EADDRNOTAVAIL, "a is no address of this machine"),
        (errno.EACCES, f"a:1 cannot be listened on: {os.strerror(errno.EACCES)}"),
    ],
)
def test_reasons(number: int, told: str) -> None:
    assert why_not("a", 1, OSError(number, os.strerror(number)), " (0)") == told
