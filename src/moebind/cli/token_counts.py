"""Numbers of tokens, as people write them."""

from __future__ import annotations

import re

__all__ = ["token_count"]

_WRITTEN = re.compile(r"(\d{1,18})([kKmM]?)", re.ASCII)
_UNITS = {"": 1, "k": 2**10, "m": 2**20}


def token_count(option: str, given: str) -> int:
    """A number of tokens: ``"32768"``, or ``"32k"``, which is the same."""
    match = _WRITTEN.fullmatch(given.strip())
    if match is None:
        raise ValueError(f"{option} is {given!r}; it takes tokens, such as 32768, or 32k, which is the same")
    return int(match[1]) * _UNITS[match[2].lower()]
