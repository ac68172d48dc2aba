"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re
from typing import SupportsIndex

from moebind._core import checks
from moebind._core.shown import shown

__all__ = ["MEMORY_MIN", "parse_memory", "parse_size", "show_size"]

#: No memory has fewer bytes: such a number is one of MiB, or GiB.
MEMORY_MIN = 2**16
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
# One letter is a power of 1024, as for llama.cpp and docker.
_UNITS |= {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_WRITTEN = re.compile(r"\s*(\d{1,18}(?:\.\d{1,15})?)\s*([a-zA-Z]{0,3})\s*", re.ASCII)


def parse_size(name: str, value: SupportsIndex | str, low: int = 0) -> int:
    """Bytes from a number of them, or a text such as ``"24GiB"``, ``"24G"`` (the same), ``"512 MB"``."""
    if not isinstance(value, (str, SupportsIndex)):
        raise TypeError(f"{name} is {shown(value)}; it takes a number of bytes, or a text such as '24GiB' or '512MB'")
    if not isinstance(value, str):
        return checks.integer(name, value, low, 2**62)
    match = _WRITTEN.fullmatch(value)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(
            f"{name} is {shown(value)}; it takes a number of bytes, or a text such as '24GiB', '24G' or '512MB'"
        )
    from decimal import Decimal  # slow to import, and few sizes are texts

    size = int(Decimal(match[1]) * unit)
    if not match[2] and 0 < size < 2**20:
        raise ValueError(_without_unit(name, value, match[1]))
    return checks.integer(name, size, low, 2**62)


def parse_memory(name: str, value: SupportsIndex | str, low: int = 0) -> int:
    """The same for memory of a device or a host, or a part of it: a number that can only mean another unit is refused.

    Raises
    ------
    TypeError, ValueError
    """
    size = parse_size(name, value, low)
    if not isinstance(value, str) and 0 < size < MEMORY_MIN:
        raise ValueError(_without_unit(name, value, str(size)))
    return size


def _without_unit(name: str, value: object, number: str) -> str:
    unit = "GiB" if float(number) < 1024 else "MiB"
    return f"{name} is {shown(value)}, which is so many bytes: give a unit, as in '{number}{unit}'"


def show_size(size: int) -> str:
    """MiB below one GiB, GiB above."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
