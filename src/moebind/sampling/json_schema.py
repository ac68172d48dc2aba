"""JSON schemas as grammars.

llama-common writes the grammar. It reads a part of JSON Schema and passes over the rest without a word, so what it
would lose is refused here, and what it would get wrong is put in a form that it gets right: bounds of integers come in
pairs, references get names of their own, strings hold no half surrogates and dates no 31st of February.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import NoReturn, TypeAlias

from moebind._core import checks
from moebind._core.native import ffi, lib
from moebind.errors import GrammarError, NativeError
from moebind.sampling.json_rules import with_corrected_rules

__all__ = ["json_schema_to_grammar"]

Schema: TypeAlias = dict[str, object]

#: The most bytes of a schema as text.
BYTES_MAX = 2**18
DEPTH_MAX = 64
#: llama.cpp takes a larger repetition for one without an end.
COUNT_MAX = 2000
#: The grammar's integers have 16 digits.
INTEGER_MAX = 10**15 - 1
#: llama-common writes a rule for each pair of them.
OPTIONAL_MAX = 128
NAME_MAX = 200
COMPARISONS_MAX = 100_000

ANNOTATIONS = {"$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title", "description", "default"}
ANNOTATIONS |= {"examples", "example", "deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding"}
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    "string": {"pattern", "format", "minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
FORMATS = ("date", "time", "date-time", "uuid")
#: Names of llama-common's own rules, which a property's rule must not take.
RESERVED = {"root", "space", "dot", "boolean", "decimal-part", "integral-part", "number", "integer", "value", "object"}
RESERVED |= {"array", "uuid", "char", "string", "null", "date", "time", "date-time"}
RESERVED |= {"date-string", "time-string", "date-time-string"}

#: Patterns of which llama-common's translation matches the same texts, and nothing that a JSON string would escape.
_CHARACTERS = r"[A-Za-z0-9 _:;,@#/%&=~!<>'-]"
_CLASS = rf"\[(?!\^)(?:[A-Za-z0-9]-[A-Za-z0-9]|{_CHARACTERS})+\]"
_REPEAT = r"(?:(?:[*+?]|\{\d{1,4}(?:,\d{0,4})?\})(?![*+?{]))?"
_PIECE = re.compile(rf"{_CHARACTERS}{_REPEAT}|{_CLASS}{_REPEAT}|\((?:\?:)?|\){_REPEAT}|\|")


def json_schema_to_grammar(schema: Mapping[str, object] | str) -> str:
    """Make a grammar for the JSON texts that a schema describes.

    The grammar forbids everything that the schema forbids, and sometimes more: properties come in the schema's order,
    an object with ``properties`` has no others, tuples have their full length, and numbers have up to 16 digits.

    Parameters
    ----------
    schema
        A JSON schema, as a dict or as text.

    Returns
    -------
    str
        The grammar in GBNF, with the rule ``root``, for ``Sampler.grammar``.

    Raises
    ------
    GrammarError
        If the schema is invalid, or says something that a grammar cannot; the message names the place and the keyword.
        Refused are ``not``, ``if``, ``patternProperties``, ``uniqueItems``, ``multipleOf``, bounds of ``number``,
        ``format`` other than date, time, date-time and uuid, ``pattern`` beyond ``^...$`` with plain characters,
        classes, groups and repetitions, references to other documents, and a ``oneOf`` whose alternatives may overlap.
    TypeError
        If it is neither a mapping nor text.

    Notes
    -----
    Uses llama-common's ``json_schema_to_grammar``.

    Examples
    --------
    >>> grammar = moebind.json_schema_to_grammar({"type": "array", "items": {"enum": ["red", "green"]}})
    >>> sampler = Sampler.chain([Sampler.grammar(model, grammar), Sampler.greedy()])
    """
    encoded = strict_schema(schema).encode()
    try:
        size = lib.moebind_json_schema_to_grammar(encoded, ffi.NULL, 0)
        buffer = ffi.new("char[]", size)
        lib.moebind_json_schema_to_grammar(encoded, buffer, size)
        grammar = with_corrected_rules(bytes(ffi.buffer(buffer, size)).decode())
        lib.moebind_grammar_check(grammar.encode(), b"root")
    except NativeError as error:
        raise GrammarError(f"the schema cannot be made into a grammar: {error.message}") from None
    return grammar


def strict_schema(schema: Mapping[str, object] | str, named: bool = False) -> str:
    """A schema as JSON that llama-common makes into a grammar of the same texts, or fewer.

    With ``named``, its rule in that grammar has the name that is asked for, and is not one of llama-common's own.
    """
    try:
        document = _Reader(_parsed(schema)).document()
        if named and not document.keys() & {"enum", "anyOf"} and not document.get("properties"):
            document = {"anyOf": [document], "$defs": document.pop("$defs")}
        return json.dumps(document, allow_nan=False)
    except RecursionError:
        raise GrammarError(f"the schema nests deeper than {DEPTH_MAX}") from None


def _parsed(schema: Mapping[str, object] | str) -> object:
    """The schema, parsed from its text as JSON, so that nothing else comes in."""
    if not isinstance(schema, (str, Mapping)):
        raise TypeError(f"schema is {schema!r} ({type(schema).__name__}); it takes a dict or JSON text")
    try:
        text = schema if isinstance(schema, str) else json.dumps(dict(schema), allow_nan=False)
        checks.utf8("schema", text)
        if len(text) > BYTES_MAX:
            raise GrammarError(f"the schema has {len(text)} characters; at most {BYTES_MAX} are taken")
        return json.loads(text, parse_constant=lambda name: _fail("#", f"{name} is not JSON"))
    except RecursionError:
        raise GrammarError(f"the schema nests deeper than {DEPTH_MAX}") from None
    except json.JSONDecodeError as error:
        raise GrammarError(f"the schema is not JSON: {error}") from None
    except ValueError as error:
        if isinstance(error, GrammarError):
            raise
        raise GrammarError(f"the schema is not JSON: {error}") from None


def _fail(path: str, what: str) -> NoReturn:
    raise GrammarError(f"the schema at {path}: {what}")


class _Reader:
    """Reads a schema, and writes one that llama-common reads as it is meant."""

    def __init__(self, root: object) -> None:
        self._root = root
        self._names: dict[str, str] = {}
        self._definitions: dict[str, Schema] = {}
        self._comparisons = 0

    def document(self) -> Schema:
        root = self._node(self._root, "#", "", 0)
        return {**root, "$defs": self._definitions}

    def _node(self, schema: object, path: str, name: str | None, depth: int) -> Schema:
        """One schema. ``name`` is how llama-common's rule will begin; None where it cannot meet one of its own."""
        if depth > DEPTH_MAX:
            _fail(path, f"it nests deeper than {DEPTH_MAX}")
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            _fail(path, f"{json.dumps(schema)} is not a schema that a text could satisfy")
        given = {key for key in schema if key not in ANNOTATIONS and not key.startswith("x-")}
        known = {"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf"}.union(*KEYWORDS.values())
        for keyword in sorted(given - known):
            _fail(path, f"{keyword!r} cannot be expressed in a grammar")
        for keyword in ("$ref", "allOf", "anyOf", "oneOf", "const", "enum"):
            if keyword in given:
                beside = sorted(given - {keyword} - ({"type"} if keyword in {"const", "enum"} else set()))
                if beside:
                    _fail(path, f"{beside[0]!r} beside {keyword!r} cannot be expressed in a grammar")
                if keyword == "$ref":
                    return self._reference(schema[keyword], path, depth)
                if keyword in {"const", "enum"}:
                    return self._values(schema, keyword, path)
                return self._combined(schema[keyword], keyword, f"{path}/{keyword}", depth)
        kind = schema.get("type") if "type" in given else self._guessed_type(given, path)
        if isinstance(kind, list):
            if not kind or not all(isinstance(each, str) for each in kind):
                _fail(path, f"'type' is {json.dumps(kind)}; it takes a name, or a list of some")
            kinds = [self._node({**schema, "type": each}, path, name, depth + 1) for each in kind]
            return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        if kind is None:
            return {}
        if kind not in TYPES:
            _fail(path, f"'type' is {json.dumps(kind)}; it takes {', '.join(TYPES)}")
        if kind == "object":
            return self._object(schema, path, name, depth)
        if kind == "array":
            return self._array(schema, path, depth)
        if kind == "string":
            return self._string(schema, path)
        if kind == "integer":
            return self._integer(schema, path)
        if kind == "number":
            for keyword in sorted(given & KEYWORDS["number"]):
                _fail(path, f"{keyword!r} of a number cannot be expressed in a grammar; that of an integer can")
        return {"type": kind}

    def _guessed_type(self, given: set[str], path: str) -> str | None:
        kinds = [kind for kind, keywords in KEYWORDS.items() if given & keywords]
        if len(kinds) > 1 or kinds == ["number"]:
            _fail(path, "without a 'type', its keywords do not tell what it describes: add one")
        return kinds[0] if kinds else None

    # --- references and combinations ---

    def _reference(self, reference: object, path: str, depth: int) -> Schema:
        if not isinstance(reference, str) or not re.match(r"#(/|$)", reference):
            _fail(path, f"'$ref' is {json.dumps(reference)}; only references into the same document (#/...) are taken")
        if reference not in self._names:
            name = self._names[reference] = f"d{len(self._names)}"
            target = self._root
            for part in reference.split("/")[1:]:
                from urllib.parse import unquote  # slow to import

                key = unquote(part).replace("~1", "/").replace("~0", "~")
                if isinstance(target, dict) and key in target:
                    target = target[key]
                elif isinstance(target, list) and re.fullmatch(r"\d{1,6}", key) and int(key) < len(target):
                    target = target[int(key)]
                else:
                    _fail(path, f"there is nothing at {reference!r}")
            self._definitions[name] = self._node(target, reference, None, depth + 1)
        return {"$ref": f"#/$defs/{self._names[reference]}"}

    def _target(self, node: Schema) -> Schema:
        """The node that a chain of references leads to; an empty one, where it leads in a circle or is not read yet."""
        for _ in range(DEPTH_MAX):
            if "$ref" not in node:
                return node
            node = self._definitions.get(str(node["$ref"]).rpartition("/")[2], {})
        return {}

    def _combined(self, alternatives: object, keyword: str, path: str, depth: int) -> Schema:
        if not isinstance(alternatives, list) or not alternatives:
            _fail(path, "it takes a list of schemas")
        nodes = [self._node(each, f"{path}/{i}", None, depth + 1) for i, each in enumerate(alternatives)]
        if len(nodes) == 1:
            return nodes[0]
        if keyword == "allOf":
            return self._merged(nodes, path)
        if keyword == "oneOf":
            for i, node in enumerate(nodes):
                for j in range(i):
                    if not self._disjoint(nodes[j], node, 0):
                        _fail(path, f"a text may satisfy both {j} and {i}, which a grammar cannot exclude: use anyOf")
        return {"anyOf": nodes}

    def _merged(self, nodes: list[Schema], path: str) -> Schema:
        properties: Schema = {}
        required: list[object] = []
        for node in map(self._target, nodes):
            own = node.get("properties")
            if not isinstance(own, dict) or node.get("additionalProperties") is False or own.keys() & properties.keys():
                _fail(path, "only objects with different properties, which allow more of them, can be combined")
            properties.update(own)
            required += _list(node.get("required"))
        return {"type": "object", "properties": properties, "required": required}

    def _disjoint(self, a: Schema, b: Schema, depth: int) -> bool:
        """Whether surely no value satisfies both."""
        self._comparisons += 1
        if self._comparisons > COMPARISONS_MAX:
            _fail("#", "its 'oneOf' have too many alternatives to compare: use anyOf")
        a, b = self._target(a), self._target(b)
        if depth > 8 or not a or not b:
            return False
        for one, other in ((a, b), (b, a)):
            if "anyOf" in one:
                return all(self._disjoint(each, other, depth + 1) for each in _nodes(one["anyOf"]))
        kinds = [_kinds(a), _kinds(b)]
        if not kinds[0] & kinds[1]:
            return True
        if "enum" in a and "enum" in b:
            return not {_canonical(each) for each in _list(a["enum"])} & {_canonical(each) for each in _list(b["enum"])}
        if kinds[0] == kinds[1] == {"object"}:
            shared = set(map(str, _list(a.get("required")))) & set(map(str, _list(b.get("required"))))
            parts = [node.get("properties") for node in (a, b)]
            return any(
                self._disjoint(parts[0][key], parts[1][key], depth + 1)  # type: ignore[index]  # required ones are there
                for key in shared
            )
        return False

    # --- values of one type ---

    def _values(self, schema: Schema, keyword: str, path: str) -> Schema:
        values = schema[keyword] if keyword == "enum" else [schema[keyword]]
        if not isinstance(values, list) or not values:
            _fail(path, "'enum' takes a list of values")
        kinds = schema.get("type", list(TYPES))
        allowed = set(map(str, kinds if isinstance(kinds, list) else [kinds]))
        for value in values:
            found = _kind(value)
            if found not in allowed and not (found == "integer" and "number" in allowed):
                _fail(path, f"{keyword!r} has {json.dumps(value)}, which its 'type' forbids")
            _check_numbers(value, path)
        return {"enum": values}

    def _object(self, schema: Schema, path: str, name: str | None, depth: int) -> Schema:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        additional = schema.get("additionalProperties", True)
        if not isinstance(properties, dict):
            _fail(path, "'properties' takes an object")
        if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
            _fail(path, "'required' takes a list of names")
        for each in required:
            if each not in properties:
                _fail(path, f"the required property {each!r} is not among 'properties', whose values a grammar needs")
        if len(properties) - len(set(required)) > OPTIONAL_MAX:
            _fail(path, f"it has more than {OPTIONAL_MAX} properties that are not required")
        if not properties:
            if additional is False:
                return {"type": "object", "properties": {}, "additionalProperties": False}
            values = self._node(additional, f"{path}/additionalProperties", None, depth + 1)
            return {"type": "object", "additionalProperties": values} if values else {"type": "object"}
        if additional not in (True, False, {}):
            _fail(path, "'additionalProperties' with a schema, beside 'properties', cannot be expressed in a grammar")
        parts: Schema = {}
        for key, value in properties.items():
            inner = None if name is None else f"{name}-{key}" if name else key
            written = "" if inner is None else re.sub(r"[^a-zA-Z0-9-]+", "-", inner)
            if len(key) > NAME_MAX:
                _fail(path, f"a property's name has {len(key)} characters; at most {NAME_MAX} are taken")
            if written.startswith("ref-") or (written in RESERVED and written != inner):
                _fail(path, f"the property {key!r} would take the place of a rule of llama-common's: rename it")
            parts[key] = self._node(value, f"{path}/properties/{key}", inner, depth + 1)
        result: Schema = {"type": "object", "properties": parts, "required": required}
        if additional is False:
            result["additionalProperties"] = False
        return result

    def _array(self, schema: Schema, path: str, depth: int) -> Schema:
        if schema.get("uniqueItems", False) is not False:
            _fail(path, "'uniqueItems' cannot be expressed in a grammar")
        least, most = self._counts(schema, "minItems", "maxItems", path)
        items = schema.get("items", True)
        prefix = schema.get("prefixItems", items if isinstance(items, list) else None)
        if prefix is not None:
            if not isinstance(prefix, list) or not prefix:
                _fail(path, "'prefixItems' takes a list of schemas")
            if not least <= len(prefix) <= (len(prefix) if most is None else most):
                _fail(path, f"it has {len(prefix)} items, which 'minItems' or 'maxItems' forbid")
            parts = [self._node(each, f"{path}/prefixItems/{i}", None, depth + 1) for i, each in enumerate(prefix)]
            return {"type": "array", "prefixItems": parts}
        if items is False:
            items, most = True, 0
            if least:
                _fail(path, "'items' is false, but 'minItems' asks for some")
        node = self._node(items, f"{path}/items", None, depth + 1)
        result: Schema = {"type": "array", "items": node, "minItems": least}
        return result if most is None else {**result, "maxItems": most}

    def _string(self, schema: Schema, path: str) -> Schema:
        least, most = self._counts(schema, "minLength", "maxLength", path)
        lengths = bool(least) or most is not None
        given = [keyword for keyword in ("pattern", "format") if keyword in schema]
        if len(given) + lengths > 1:
            _fail(path, f"{given[0]!r} beside {given[1] if len(given) > 1 else 'a length'!r} cannot be expressed")
        if "format" in schema:
            if schema["format"] not in FORMATS:
                _fail(path, f"'format' is {json.dumps(schema['format'])}; it takes {', '.join(FORMATS)}")
            return {"type": "string", "format": schema["format"]}
        if "pattern" in schema:
            self._check_pattern(schema["pattern"], path)
            return {"type": "string", "pattern": schema["pattern"]}
        result: Schema = {"type": "string"}
        if least:
            result["minLength"] = least
        return result if most is None else {**result, "maxLength": most}

    def _check_pattern(self, pattern: object, path: str) -> None:
        """Refuse what llama-common translates to something else."""
        if not isinstance(pattern, str) or len(pattern) > COUNT_MAX or not re.match(r"\^.+\$\Z", pattern):
            _fail(path, f"'pattern' is {json.dumps(pattern)}; only patterns of the form ^...$ are taken")
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
                _fail(
                    path,
                    f"'pattern' has {pattern[at : at + 10]!r} at {at}; beyond letters, digits, some signs, classes of "
                    "them, groups and repetitions, nothing is taken",
                )
            nested -= symbol.startswith(")")
            after_opening = opening
            at += len(symbol)
        if nested or after_opening:
            _fail(path, "'pattern' is not complete")

    def _counts(self, schema: Schema, low: str, high: str, path: str) -> tuple[int, int | None]:
        found: list[int | None] = []
        for keyword in (low, high):
            value = schema.get(keyword)
            if keyword in schema and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                _fail(path, f"{keyword!r} is {json.dumps(value)}; it takes an integer, 0 or more")
            if isinstance(value, int) and value > COUNT_MAX:
                _fail(path, f"{keyword!r} is {value}; at most {COUNT_MAX} can be expressed in a grammar")
            found.append(value if isinstance(value, int) else None)
        least, most = found[0] or 0, found[1]
        if most is not None and least > most:
            _fail(path, f"{low!r} is larger than {high!r}")
        return least, most

    def _integer(self, schema: Schema, path: str) -> Schema:
        if schema.get("multipleOf", 1) != 1 or schema.get("multipleOf") is True:
            _fail(path, "'multipleOf' cannot be expressed in a grammar")
        lows, highs = [-INTEGER_MAX], [INTEGER_MAX]
        for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
            if keyword not in schema:
                continue
            value = schema[keyword]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value in {math.inf, -math.inf}:
                _fail(path, f"{keyword!r} is {json.dumps(value)}; it takes a number")
            exclusive = keyword.startswith("exclusive")
            if keyword.endswith("inimum"):
                lows.append(math.floor(value) + 1 if exclusive else math.ceil(value))
            else:
                highs.append(math.ceil(value) - 1 if exclusive else math.floor(value))
        if len(lows) == len(highs) == 1:
            return {"type": "integer"}
        if max(lows) > min(highs):
            _fail(path, f"no integer of up to 15 digits lies between {max(lows)} and {min(highs)}")
        return {"type": "integer", "minimum": max(lows), "maximum": min(highs)}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _nodes(value: object) -> list[Schema]:
    return [node for node in _list(value) if isinstance(node, dict)]


def _kind(value: object) -> str:
    """The type of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) or value.is_integer() else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _kinds(node: Schema) -> set[str]:
    """The types that values of a node can have."""
    if "enum" in node:
        return {_kind(value).replace("number", "integer") for value in _list(node["enum"])}
    return {str(node.get("type")).replace("number", "integer")}


def _canonical(value: object) -> str:
    """A text that is equal for values that JSON Schema takes for equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def _check_numbers(value: object, path: str) -> None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        _fail(path, f"{value} has too many digits")
    if isinstance(value, float) and not math.isfinite(value):
        _fail(path, f"{value} is too large")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(part, path)
