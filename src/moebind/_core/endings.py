"""How a process ended, in words."""

from __future__ import annotations

import signal

__all__ = ["ended_by"]


def ended_by(number: int) -> str | None:
    """Say which signal ended a process, and what that may mean; None if there is no such signal."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return None
    because = ": by somebody, or by the system, because memory ran out" if number == signal.SIGKILL else ""
    return f"was ended by {name}{because}"
