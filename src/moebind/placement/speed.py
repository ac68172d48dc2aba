"""How fast a token can be at most: every byte that it needs has to come from a memory."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import TypeAlias

from moebind._core import checks
from moebind._core.shown import shown
from moebind._core.sizes import parse_size, show_size

__all__ = ["Bandwidth", "reads_text", "tokens_per_second"]

#: Bytes in a second, as a number or as a text.
Bandwidth: TypeAlias = "float | str"
#: What is shown as 0.1 MiB.
_SHOWN_MIN = 2**20 // 20
#: A memory of which this part of what a token reads comes, and less than is shown, takes no time.
_LITTLE = 1000
#: No memory is so slow: such a number is one of MB, or GB, in a second.
_PER_SECOND_MIN = 2**20
_PER_SECOND = re.compile(r"\s*(?:/\s*s|ps)\s*$", re.IGNORECASE)


def tokens_per_second(reads: Mapping[str, int], bandwidths: Mapping[str, Bandwidth]) -> float:
    """Tokens in a second if nothing took time but these reads, one memory after the other.

    Parameters
    ----------
    reads
        Bytes for each token, by memory.
    bandwidths
        Bytes in a second, by memory.

    Raises
    ------
    TypeError, ValueError
        If ``bandwidths`` is no mapping of numbers and texts, lacks a memory that is read, or names an unknown one.
    """
    if not isinstance(bandwidths, Mapping):
        raise TypeError(f"bandwidths is {shown(bandwidths)}; it takes a mapping such as {{'Host': '80GB/s'}}")
    for name in bandwidths:
        if name not in reads:
            raise ValueError(f"bandwidths names {shown(name)}; there are {', '.join(reads)}")
    seconds = 0.0
    for name, nbytes in reads.items():
        if name in bandwidths:
            seconds += nbytes / _bytes_per_second(f"bandwidths[{shown(name)}]", bandwidths[name])
        elif nbytes and not (nbytes < _SHOWN_MIN and nbytes * _LITTLE < sum(reads.values())):
            raise ValueError(
                f"bandwidths has no {shown(name)}, of which a token reads {show_size(nbytes)}; give its bytes in a "
                "second, such as '80GB/s'"
            )
    return 1.0 / seconds if seconds else float("inf")


def _bytes_per_second(name: str, value: Bandwidth) -> float:
    if not isinstance(value, str):
        found = checks.number(name, value, 0.0)
        if 0 < found < _PER_SECOND_MIN:
            number = f"{found:g}{'GB/s' if found < 10_000 else 'MB/s'}"
            raise ValueError(f"{name} is {value!r}, which is so many bytes in a second: give a unit, as in '{number}'")
    else:
        size, unit = _PER_SECOND.subn("", value)
        try:
            found = parse_size(name, size) if unit else 0
        except ValueError:
            found = 0
    if not found > 0:
        raise ValueError(f"{name} is {shown(value)}; it takes bytes in a second above 0, or a text such as '1000GB/s'")
    return float(found)


def reads_text(reads: Mapping[str, int], width: int = 100) -> list[str]:
    """A sentence that says what is read; less than is shown counts as nothing. Only many devices take several lines."""
    parts = [f"{show_size(nbytes)} from {name}" for name, nbytes in reads.items() if nbytes >= _SHOWN_MIN]
    told = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "next to nothing"
    text = f"With a full cache, a token reads {told}."
    # Numbers stay with their units.
    text = re.sub(r"(\d) ([MG]iB)", "\\1\u00a0\\2", text)
    lines = textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False)
    return [line.replace("\u00a0", " ") for line in lines]
