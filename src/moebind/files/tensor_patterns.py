"""Regular expressions over tensor names, as llama.cpp reads them.

llama.cpp compiles them with C++'s ``std::regex``, which recurses and backtracks without limit, so that some patterns
would take forever or overflow the stack. Those are refused here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from moebind._core import checks
from moebind._core.native import decoded, ffi, lib
from moebind._core.shown import shown
from moebind.errors import NativeError

__all__ = ["VALUE_EXPERTS", "check_pattern", "experts_pattern", "matching", "numbers", "similar_names"]

LENGTH_MAX = 1000
#: Matrices of which a token uses a few for its attention's values (K2 Horizon).
VALUE_EXPERTS = "attn_v_exps"
#: So many `*`, `+` or `{n,}` in one pattern still take milliseconds over a model's names, in the worst case.
REPEATS_MAX = 4
#: In how many ways the pieces of a pattern may match, all together: a choice in as many as it has, an optional piece in
#: two, an unbounded repetition taken for eight.
WAYS_MAX, WAYS_OF_A_REPEAT = 2**15, 8
_QUANTIFIERS: dict[str, tuple[int, int | None]] = {"?": (0, 1), "*": (0, None), "+": (1, None)}
#: The beginning of a group that captures nothing, an escaped character, a class, a counted repetition, any character.
_PIECES = re.compile(r"\(\?[:=!]|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d+,?\d*\}|.", re.DOTALL)


def experts_pattern() -> str:
    """A pattern for all experts' tensors: those of llama.cpp's ``--cpu-moe``, and experts that are part of attention.

    The former are up, down, gate, fused gate_up, and the ``chexps`` of groups; llama.cpp leaves the latter out, of
    which a token uses only a few, too.
    """
    return rf"(?:{decoded(lib.moebind_ffn_exps_regex())}|\.{VALUE_EXPERTS})"


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
            f"pattern {shown(pattern)} is not a regular expression of std::regex, which llama.cpp uses: {error.message}"
        ) from None
    repeats, ways = _repeats_and_ways(pattern)
    if repeats > REPEATS_MAX:
        raise ValueError(
            f"pattern {shown(pattern)} has {repeats} unbounded repetitions; at most {REPEATS_MAX} are taken"
        )
    if ways > WAYS_MAX:
        raise ValueError(
            f"pattern {shown(pattern)} has so many optional pieces and choices that std::regex may never finish: write "
            "it with fewer"
        )
    return pattern


def _repeats_and_ways(pattern: str) -> tuple[int, int]:
    """Count repetitions without an upper end, and ways to match; raises when a choice or a repetition is repeated."""
    count, ways = 0, 1
    open_groups: list[bool] = [False]  # whether each holds something whose repetition could explode
    choices: list[int] = [1]  # how many each has
    last_group_explodes = False
    quantified = lazy = False  # the last piece was a quantifier; and a `?` behind one
    for piece in _PIECES.finditer(pattern):
        symbol = piece[0]
        bounds = _bounds(symbol)
        if symbol.startswith("("):
            open_groups.append(False)
            choices.append(1)
        elif symbol == ")" and len(open_groups) > 1:
            last_group_explodes = open_groups.pop()
            open_groups[-1] |= last_group_explodes
            ways *= choices.pop()
            quantified = lazy = False
            continue
        elif symbol == "|":
            open_groups[-1] = True
            choices[-1] += 1
        elif bounds is not None:
            if symbol == "?" and quantified and not lazy:
                lazy = True  # `a+?` is `a+` that takes as little as it can
                continue
            if quantified or (last_group_explodes and symbol != "?"):
                raise ValueError(
                    f"pattern {shown(pattern)} repeats what holds a choice or a repetition ({shown(symbol)} at "
                    f"{piece.start()}), which std::regex may never finish: write it without"
                )
            low, high = bounds
            count += high is None
            ways *= WAYS_OF_A_REPEAT if high is None else max(1, min(high - low + 1, WAYS_OF_A_REPEAT))
            open_groups[-1] |= low != high
        quantified, lazy = bounds is not None, False
        last_group_explodes = False
    for each in choices:
        ways *= each
    return count, ways


def _bounds(symbol: str) -> tuple[int, int | None] | None:
    """How often a quantifier repeats, None for no end; None for what is no quantifier."""
    if symbol in _QUANTIFIERS:
        return _QUANTIFIERS[symbol]
    counted = re.fullmatch(r"\{(\d+)(?:(,)(\d*))?\}", symbol)
    if counted is None:
        return None
    low = int(counted[1])
    return low, low if counted[2] is None else int(counted[3]) if counted[3] else None


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


def numbers(first: int, last: int) -> str:
    """A regular expression for the decimal numbers from ``first`` to ``last``: short, however many there are."""
    choices: list[str] = []
    for digits in range(len(str(first)), len(str(last)) + 1):
        low, high = max(first, 10 ** (digits - 1) if digits > 1 else 0), min(last, 10**digits - 1)
        choices += _equally_long(str(low), str(high))
    return "|".join(choices)


def _equally_long(low: str, high: str) -> list[str]:
    """Choices for the numbers between two that have as many digits; zeros may come first."""
    if not low:
        return [""]
    if low[0] == high[0]:
        return [low[0] + rest for rest in _equally_long(low[1:], high[1:])]
    first, last = int(low[0]), int(high[0])
    before, after = [], []
    if low[1:].strip("0"):  # behind the first digit, not all are in
        before = [low[0] + rest for rest in _equally_long(low[1:], "9" * len(low[1:]))]
        first += 1
    if high[1:].strip("9"):
        after = [high[0] + rest for rest in _equally_long("0" * len(high[1:]), high[1:])]
        last -= 1
    whole = [_digits(first, last) + r"\d" * len(low[1:])] if first <= last else []
    return [*before, *whole, *after]


def _digits(lowest: int, highest: int) -> str:
    """A regular expression for one digit, as short as people write it."""
    if (lowest, highest) == (0, 9):
        return r"\d"
    dash = "-" if highest - lowest > 1 else ""
    return str(lowest) if lowest == highest else f"[{lowest}{dash}{highest}]"
