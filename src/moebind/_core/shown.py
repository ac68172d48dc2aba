"""Values as messages show them: short, however large they are."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from itertools import islice
from typing import Any

__all__ = ["SHOWN_MAX", "shown"]

#: So many characters of a value are shown.
SHOWN_MAX = 100
#: Integers of more bits are not written out: Python refuses to write very long ones.
_BITS_MAX = 256
_CONTAINERS = (tuple, list, dict, set, frozenset)


class _Short(reprlib.Repr):
    """Looks at the first members of containers and the beginnings of texts, never at all of them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = 20
        self.most = most

    def repr1(self, x: Any, level: int) -> str:
        # By how it would be written, not by the name of its type: what derives from a list may be long, too.
        for kind in _CONTAINERS:
            if getattr(type(x), "__repr__", None) is kind.__repr__:
                return str(getattr(self, f"repr_{kind.__name__}")(x, level))
        if isinstance(x, (str, bytes, bytearray)):
            return self.cut(repr(x[: self.most]))
        if type(x) is int and x.bit_length() > _BITS_MAX:
            return f"<int of {x.bit_length()} bits>"
        try:
            return self.cut(repr(x))
        except Exception:  # of whatever it is
            return f"<{type(x).__name__} object>"

    def repr_dict(self, x: Mapping[Any, Any], level: int) -> str:
        # In its order; reprlib's are sorted.
        if level <= 0:
            return "{...}"
        pairs = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in islice(x.items(), self.maxdict)
        ]
        return f"{{{', '.join(pairs)}{', ...' * (len(x) > self.maxdict)}}}"

    def cut(self, text: str) -> str:
        return text if len(text) <= self.most else text[: self.most - 3] + "..."


def shown(value: object, most: int = SHOWN_MAX) -> str:
    """The ``repr`` of a value for a message: at most so many characters, of which no more is made than is needed."""
    short = _Short(most)
    return short.cut(short.repr(value))
