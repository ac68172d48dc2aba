"""Strings, numbers and single values of a JSON schema, in the form that llama-common reads as they are meant."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import NoReturn, TypeAlias, TypeGuard

from moebind._core.shown import SHOWN_MAX
from moebind.errors import GrammarError

Schema: TypeAlias = dict[str, object]

#: So many characters of a place in a schema are shown.
PLACE_MAX = 300
#: llama.cpp takes a larger repetition for one without an end.
COUNT_MAX = 2000
#: The grammar's integers have 16 digits.
INTEGER_MAX = 10**15 - 1
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
FORMATS = ("date", "time", "date-time", "uuid")
#: Formats that say what a text is for, and allow any.
NO_FORMATS = ("password", "binary", "path", "file-path", "directory-path")
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}

#: Patterns of which llama-common's translation matches the same texts, and nothing that a JSON string would escape.
_CHARACTERS = r"[A-Za-z0-9 _:;,@#/%&=~!<>'-]"
_CLASS = rf"\[(?!\^)(?:[A-Za-z0-9]-[A-Za-z0-9]|{_CHARACTERS})+\]"
_REPEAT = r"(?:(?:[*+?]|\{\d{1,4}(?:,\d{0,4})?\})(?![*+?{]))?"
_PIECE = re.compile(rf"{_CHARACTERS}{_REPEAT}|{_CLASS}{_REPEAT}|\((?:\?:)?|\){_REPEAT}|\|")


class UnheldError(GrammarError):
    """Something in a schema that no grammar can hold a text to; without the keywords in ``drop``, one could.

    Long places are cut in their middle for the message; ``fault`` tells them apart.
    """

    def __init__(self, path: str, what: str, drop: Iterable[str] = ()) -> None:
        cut = len(path) - PLACE_MAX
        half = PLACE_MAX // 2
        where = path if cut <= 0 else f"{path[:half]}... ({cut} characters) ...{path[-half:]}"
        super().__init__(f"the schema at {where}: {what}")
        self.fault = (path, what)
        self.drop = frozenset(drop)


def short_json(value: object) -> str:
    """A value as it may stand in a message: JSON, of which a long one is cut."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 3] + "..."


def fail(path: str, what: str, *drop: str) -> NoReturn:
    """Say what is wrong, and without which keywords it would not be."""
    raise UnheldError(path, what, drop)


def values(schema: Schema, keyword: str, path: str) -> Schema:
    """Those of an ``enum`` or a ``const`` that the keywords beside it allow."""
    listed = schema[keyword] if keyword == "enum" else [schema[keyword]]
    if not isinstance(listed, list) or not listed:
        fail(path, "'enum' takes a list of values", keyword)
    elsewhere = as_list(schema["enum"]) if keyword == "const" and "enum" in schema else listed
    if canonical(listed[0]) not in map(canonical, elsewhere):
        fail(path, "'const' is not among the values of 'enum'", "enum")
    kinds = schema.get("type", list(TYPES))
    allowed = set(map(str, kinds if isinstance(kinds, list) else [kinds]))
    for value in listed:
        found = kind_of(value)
        if found not in allowed and not (found == "integer" and "number" in allowed):
            fail(path, f"{keyword!r} has {short_json(value)}, which its 'type' forbids", keyword)
        check_numbers(value, path)
    kept = [
        value
        for value in listed
        if all(test(value, schema[limit]) for limit, test in LIMITS.items() if limit in schema)
    ]
    if not kept:
        fail(path, f"none of the values of {keyword!r} is one that the keywords beside it allow", *LIMITS)
    return {"enum": kept}


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _length(value: object, of: type, test: Callable[[int], bool]) -> bool:
    return not isinstance(value, of) or test(len(value))  # type: ignore[arg-type]


#: Keywords that can stand beside an ``enum``, and what they say of a value.
LIMITS: dict[str, Callable[[object, object], bool]] = {
    "minimum": lambda value, limit: not _number(value) or not _number(limit) or value >= limit,
    "maximum": lambda value, limit: not _number(value) or not _number(limit) or value <= limit,
    "exclusiveMinimum": lambda value, limit: not _number(value) or not _number(limit) or value > limit,
    "exclusiveMaximum": lambda value, limit: not _number(value) or not _number(limit) or value < limit,
    "minLength": lambda value, limit: _length(value, str, lambda n: not _number(limit) or n >= limit),
    "maxLength": lambda value, limit: _length(value, str, lambda n: not _number(limit) or n <= limit),
    "minItems": lambda value, limit: _length(value, list, lambda n: not _number(limit) or n >= limit),
    "maxItems": lambda value, limit: _length(value, list, lambda n: not _number(limit) or n <= limit),
}


def string(schema: Schema, path: str) -> Schema:
    """Texts of a length, a format or a pattern."""
    least, most = counts(schema, "minLength", "maxLength", path)
    lengths = bool(least) or most is not None
    if schema.get("format") in NO_FORMATS:
        schema = {key: value for key, value in schema.items() if key != "format"}
    given: list[str] = [keyword for keyword in ("pattern", "format") if keyword in schema]
    if len(given) + lengths > 1:
        others: list[str] = given[1:] or [
            keyword for keyword in ("minLength", "maxLength") if schema.get(keyword) is not None
        ]
        fail(path, f"{given[0]!r} beside {others[0]!r} cannot be expressed in a grammar", *others)
    if "format" in schema:
        if schema["format"] not in FORMATS:
            fail(path, f"'format' is {short_json(schema['format'])}; it takes {', '.join(FORMATS)}", "format")
        return {"type": "string", "format": schema["format"]}
    if "pattern" in schema:
        _check_pattern(schema["pattern"], path)
        return {"type": "string", "pattern": schema["pattern"]}
    result: Schema = {"type": "string"}
    if least:
        result["minLength"] = least
    return result if most is None else {**result, "maxLength": most}


def _check_pattern(pattern: object, path: str) -> None:
    """Refuse what llama-common translates to something else."""
    if not isinstance(pattern, str) or len(pattern) > COUNT_MAX or not re.match(r"\^.+\$\Z", pattern):
        fail(path, f"'pattern' is {short_json(pattern)}; only patterns of the form ^...$ are taken", "pattern")
    at, end, nested, after_opening = 1, len(pattern) - 1, 0, False
    while at < end:
        piece = _PIECE.match(pattern, at, end)
        symbol = piece[0] if piece else ""
        nested += symbol.startswith("(")
        opening = symbol.startswith("(") or symbol == "|"
        closing = symbol == "|" or symbol.startswith(")")
        counts = re.search(r"\{(\d+)(?:,(\d*))?\}$", symbol)
        bad_counts = counts and (
            max(int(counts[1]), int(counts[2] or 0)) > COUNT_MAX or (counts[2] and int(counts[2]) < int(counts[1]))
        )
        if not symbol or bad_counts or (closing and (nested == 0 or after_opening)):
            fail(
                path,
                f"'pattern' has {pattern[at : at + 10]!r} at {at}; beyond letters, digits, some signs, classes of "
                "them, groups and repetitions, nothing is taken",
                "pattern",
            )
        nested -= symbol.startswith(")")
        after_opening = opening
        at += len(symbol)
    if nested or after_opening:
        fail(path, "'pattern' is not complete", "pattern")


def counts(schema: Schema, low: str, high: str, path: str) -> tuple[int, int | None]:
    """How many at least and at most."""
    found: list[int | None] = []
    for keyword in (low, high):
        value = schema.get(keyword)
        if keyword in schema and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            fail(path, f"{keyword!r} is {short_json(value)}; it takes an integer, 0 or more", keyword)
        if isinstance(value, int) and value > COUNT_MAX:
            fail(path, f"{keyword!r} is {value}; at most {COUNT_MAX} can be expressed in a grammar", keyword)
        found.append(value if isinstance(value, int) else None)
    least, most = found[0] or 0, found[1]
    if most is not None and least > most:
        fail(path, f"{low!r} is larger than {high!r}", low, high)
    return least, most


def integer(schema: Schema, path: str) -> Schema:
    """Integers between bounds, which llama-common reads in pairs."""
    if schema.get("multipleOf", 1) != 1 or schema.get("multipleOf") is True:
        fail(path, "'multipleOf' cannot be expressed in a grammar", "multipleOf")
    lows, highs = [-INTEGER_MAX], [INTEGER_MAX]
    for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        if keyword not in schema:
            continue
        value = schema[keyword]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value in {math.inf, -math.inf}:
            fail(path, f"{keyword!r} is {short_json(value)}; it takes a number", keyword)
        exclusive = keyword.startswith("exclusive")
        if keyword.endswith("inimum"):
            lows.append(math.floor(value) + 1 if exclusive else math.ceil(value))
        else:
            highs.append(math.ceil(value) - 1 if exclusive else math.floor(value))
    if len(lows) == len(highs) == 1:
        return {"type": "integer"}
    if max(lows) > min(highs):
        fail(path, f"no integer of up to 15 digits lies between {max(lows)} and {min(highs)}", *BOUNDS)
    return {"type": "integer", "minimum": max(lows), "maximum": min(highs)}


def as_list(value: object) -> list[object]:
    """The value if it is a list, or an empty one."""
    return value if isinstance(value, list) else []


def as_nodes(value: object) -> list[Schema]:
    """The schemas in a list."""
    return [node for node in as_list(value) if isinstance(node, dict)]


def kind_of(value: object) -> str:
    """The type of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) or value.is_integer() else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def kinds_of(node: Schema) -> set[str]:
    """The types that values of a node can have; a number may be an integer."""
    if "enum" in node:
        return {kind_of(value).replace("number", "integer") for value in as_list(node["enum"])}
    if "type" not in node:
        return {kind.replace("number", "integer") for kind in TYPES}
    return {str(node["type"]).replace("number", "integer")}


def canonical(value: object) -> str:
    """A text that is equal for values that JSON Schema takes for equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def check_numbers(value: object, path: str) -> None:
    """Refuse numbers that llama-common's reader of JSON would change."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        fail(path, f"{value} has too many digits")
    if isinstance(value, float) and not math.isfinite(value):
        fail(path, f"{value} is too large")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_numbers(part, path)
