"""JSON schemas as grammars.

llama-common writes the grammar. It reads a part of JSON Schema and passes over the rest without a word, so what it
would lose is refused here, and what it would get wrong is put in a form that it gets right: bounds of integers come in
pairs, references get names of their own, strings hold no half surrogates and dates no 31st of February.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.caller import warn
from moebind._core.native import ffi, lib
from moebind._core.shown import shown
from moebind.errors import GrammarError, NativeError
from moebind.sampling.json_reader import ANNOTATIONS, DEPTH_MAX, KEYWORDS, SchemaReader
from moebind.sampling.json_rules import Names, with_corrected_rules, with_property_order
from moebind.sampling.json_values import Schema, UnheldError, fail

__all__ = ["ANNOTATIONS", "KEYWORDS", "ReadSchema", "json_schema_to_grammar", "read_schema"]

#: Where OpenAI's interface, and llama-server's, have a schema in a dict.
_ENVELOPES = ("response_format", "json_schema", "schema")
_WRAPPED = frozenset({*_ENVELOPES, "type", "name", "description", "strict"})
#: The most bytes of a schema as text.
BYTES_MAX = 2**18


@explained()
def json_schema_to_grammar(schema: Mapping[str, object] | str, *, strict: bool = True) -> str:
    """Make a grammar for the JSON texts that a schema describes.

    The grammar forbids everything that the schema forbids, and sometimes more: properties come in the schema's order,
    an object with ``properties`` has no others, tuples have their full length, and numbers have up to 16 digits.

    Parameters
    ----------
    schema
        A JSON schema, as a dict or as text.
    strict
        False: leave out what a grammar cannot hold a text to, with a warning that says what it is. Check it yourself.

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

    Warns
    -----
    UserWarning
        If ``strict`` is False, for each thing in the schema that the grammar does not hold a text to.

    Notes
    -----
    Uses llama-common's ``json_schema_to_grammar``.

    Examples
    --------
    >>> schema = {"type": "array", "items": {"enum": ["red", "green"]}}
    >>> grammar = moebind.json_schema_to_grammar(schema)
    >>> sampler = Sampler.chain([Sampler.grammar(model, grammar), Sampler.greedy()])
    """
    read = read_schema(schema, strict=checks.boolean("strict", strict))
    for each in read.lost:
        warn(f"the grammar does not hold a text to all of the schema: {each}")
    encoded = json.dumps(read.document, allow_nan=False).encode()
    try:
        size = lib.moebind_json_schema_to_grammar(encoded, ffi.NULL, 0)
        buffer = ffi.new("char[]", size)
        lib.moebind_json_schema_to_grammar(encoded, buffer, size)
        grammar = with_corrected_rules(bytes(ffi.buffer(buffer, size)).decode())
        grammar = with_property_order(grammar, read.orders)
        lib.moebind_grammar_check(grammar.encode(), b"root")
    except NativeError as error:
        raise GrammarError(f"the schema cannot be made into a grammar: {error.message}") from None
    return grammar


class ReadSchema(NamedTuple):
    """A schema that llama-common makes into a grammar of the same texts, or fewer.

    ``lost`` is what of the given one is not in it; ``orders`` are those of properties that llama-common would change.
    """

    document: Schema
    lost: list[str]
    orders: Mapping[tuple[Names, Names], list[Names]]


def read_schema(
    schema: Mapping[str, object] | str, *, strict: bool = True, named: bool = False, prefix: str = "d"
) -> ReadSchema:
    """Read a schema; without ``strict``, leave out what a grammar cannot hold a text to.

    With ``named``, its rule in the grammar has the name that is asked for, and is not one of llama-common's own.
    """
    try:
        parsed = _parsed(schema)
        _refuse_response_format(parsed)
        reader = SchemaReader(parsed, strict=strict, prefix=prefix)
        document = reader.document()
        if named and not document.keys() & {"enum", "anyOf"} and not document.get("properties"):
            document = {"anyOf": [document], "$defs": document.pop("$defs")}
        json.dumps(document, allow_nan=False)
    except UnheldError as error:
        hint = "; leave it out, or pass strict=False" if strict and _reads_loosely(schema) else ""
        raise GrammarError(f"{error}{hint}") from None
    except RecursionError:
        raise GrammarError(f"the schema nests deeper than {DEPTH_MAX}") from None
    return ReadSchema(document, reader.lost, reader.orders)


def _reads_loosely(schema: Mapping[str, object] | str) -> bool:
    """Whether something of a schema is left when all that a grammar cannot hold a text to is left out."""
    try:
        read_schema(schema, strict=False)
    except GrammarError:
        return False
    return True


def _refuse_response_format(document: object) -> None:
    """Refuse the ``response_format`` of OpenAI's interface, or a part of it: a schema is in there, deeper.

    Raises
    ------
    GrammarError
    """
    at, inner = "", document
    while isinstance(inner, dict) and inner.keys() <= _WRAPPED:
        key = next((each for each in _ENVELOPES if isinstance(inner.get(each), dict)), None)
        if key is None:
            break
        at, inner = f"{at}[{shown(key)}]", inner[key]
    if at:
        alone = 'write {"type": "object"}' if inner == {"type": "json_object"} else f"give what is under {at} alone"
        raise GrammarError(f"the schema is wrapped, as in OpenAI's response_format: {alone}")
    if isinstance(document, dict) and document.get("type") == "json_object":
        raise GrammarError('the schema is a response_format of OpenAI\'s: {"type": "object"} is any JSON object')


def _parsed(schema: Mapping[str, object] | str) -> object:
    """The schema, parsed from its text as JSON, so that nothing else comes in."""
    if not isinstance(schema, (str, Mapping)):
        kind = schema if isinstance(schema, type) else type(schema)
        hint = f": {kind.__name__}.model_json_schema()" if hasattr(kind, "model_json_schema") else ""
        raise TypeError(f"schema is {shown(schema)} ({type(schema).__name__}); it takes a dict or JSON text{hint}")
    try:
        text = schema if isinstance(schema, str) else json.dumps(dict(schema), allow_nan=False)
        checks.utf8("schema", text)
        if len(text) > BYTES_MAX:
            raise GrammarError(f"the schema has {len(text)} characters; at most {BYTES_MAX} are taken")
        return json.loads(text, parse_constant=lambda name: fail("#", f"{name} is not JSON"))
    except RecursionError:
        raise GrammarError(f"the schema nests deeper than {DEPTH_MAX}") from None
    except json.JSONDecodeError as error:
        raise GrammarError(f"the schema is not JSON: {error}") from None
    except ValueError as error:
        if isinstance(error, GrammarError):
            raise
        raise GrammarError(f"the schema is not JSON: {error}") from None
