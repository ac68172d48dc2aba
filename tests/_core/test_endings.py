"""How a process ended, in words."""

from __future__ import annotations

import signal

import pytest

from moebind._core.endings import ended_by


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "was ended by SIGKILL: by somebody, or by the system, because memory ran out"),
        (signal.SIGSEGV, "was ended by SIGSEGV"),
        (-3, None),  # a status of 125, as shells count
        (0, None),
        (1000, None),
    ],
)
def test_the_signal_is_named(number: int, told: str | None) -> None:
    assert ended_by(number) == told
