"""Regular expressions over tensor names, as llama.cpp reads them.

llama.cpp compiles them with C++'s ``std::regex``, which recurses and backtracks without limit, so that some patterns
would take forever or overflow the stack. Those are refused here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from moebind import checks
from moebind._native import decoded, ffi, lib
from moebind.errors import NativeError

__all__ = ["check_pattern", "experts_pattern", "matching", "similar_names"]

LENGTH_MAX = 1000
#: So many `*`, `+` or `{n,}` in one pattern still take milliseconds over a model's names, in the worst case.
REPEATS_MAX = 4
#: An escaped character, a class, a counted repetition, or any one character.
_PIECES = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d+,?\d*\}|.", re.DOTALL)


def experts_pattern() -> str:
    """llama.cpp's pattern for all experts' tensors: up, down, gate, fused gate_up, and the shared ``chexps``."""
    return decoded(lib.moebind_ffn_exps_regex())


def check_pattern(pattern: str) -> str:
    """Refuse what ``std::regex`` does not take, or might never finish.

    Raises
    ------
    ValueError
        With what is wrong.
    """
    encoded = checks.text("pattern", pattern)
    if not pattern or len(encoded) > LENGTH_MAX:
        raise ValueError(f"pattern has {len(encoded)} bytes; it takes 1 to {LENGTH_MAX}")
    try:
        lib.moebind_regex_search(encoded, ffi.NULL, 0, ffi.NULL)
    except NativeError as error:
        raise ValueError(
            f"pattern {pattern!r} is not a regular expression of std::regex, which llama.cpp uses: {error.message}"
        ) from None
    repeats = _unbounded_repeats(pattern)
    if repeats > REPEATS_MAX:
        raise ValueError(f"pattern {pattern!r} has {repeats} unbounded repetitions; at most {REPEATS_MAX} are taken")
    return pattern


def _unbounded_repeats(pattern: str) -> int:
    """Count the repetitions without an upper end; raises when one repeats a choice or another repetition."""
    count = 0
    open_groups: list[bool] = [False]  # whether each holds something whose repetition could explode
    last_group_explodes = False
    for piece in _PIECES.finditer(pattern):
        symbol = piece[0]
        if symbol == "(":
            open_groups.append(False)
        elif symbol == ")" and len(open_groups) > 1:
            last_group_explodes = open_groups.pop()
            open_groups[-1] |= last_group_explodes
            continue
        elif symbol == "|":
            open_groups[-1] = True
        elif symbol in {"*", "+"} or re.fullmatch(r"\{\d+,\d*\}", symbol):
            if last_group_explodes:
                raise ValueError(
                    f"pattern {pattern!r} repeats a group that holds a choice or a repetition ({symbol!r} at "
                    f"{piece.start()}), which std::regex may never finish: write it without"
                )
            count += not re.fullmatch(r"\{\d+,\d+\}", symbol)
            open_groups[-1] = True
        last_group_explodes = False
    return count


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Those names in which ``std::regex_search`` finds the pattern."""
    encoded = [ffi.new("char[]", name.encode()) for name in names]
    matches = ffi.new("bool[]", len(names))
    lib.moebind_regex_search(pattern.encode(), encoded, len(names), matches)
    return [name for name, matched in zip(names, matches, strict=True) if matched]


def similar_names(pattern: str, names: Sequence[str], most: int = 6) -> list[str]:
    """Names of the model's to show to somebody whose pattern matched none: one of each kind, the most alike first."""
    kinds: dict[str, str] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "N", name), name)
    plain = re.sub(r"\\(.)", r"\1", pattern)
    import difflib  # rarely needed, and slow to import

    return sorted(kinds.values(), key=lambda name: -difflib.SequenceMatcher(None, plain, name).ratio())[:most]
