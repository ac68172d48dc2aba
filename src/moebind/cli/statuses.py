"""The statuses with which commands end."""

from __future__ import annotations

__all__ = ["FAILED", "INTERRUPTED", "MISUSED", "status_of"]

#: Something failed; the command line or a value in it is wrong; Ctrl-C.
FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def status_of(error: Exception) -> int:
    """The status that tells of an error: some of moebind's own are of a wrong value, too."""
    return MISUSED if isinstance(error, (ValueError, TypeError, IndexError)) else FAILED
