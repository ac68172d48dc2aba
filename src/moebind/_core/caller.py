"""Warnings that point to the line of who uses moebind, however deep in moebind they come from."""

from __future__ import annotations

import os
import sys
import warnings

__all__ = ["warn"]

#: Where moebind's modules are. Those of the standard library through which it calls itself are no user's lines either.
_OWN = (os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,)
_BETWEEN = frozenset({"contextlib", "functools", "threading", "concurrent.futures.thread"})


def warn(message: str) -> None:
    """Warn whoever called moebind."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_OWN) or frame.f_globals.get("__name__") in _BETWEEN
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
