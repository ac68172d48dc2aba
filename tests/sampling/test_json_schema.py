"""JSON schemas: what is written satisfies them, and what cannot be held to is refused."""

from __future__ import annotations

import json
import re
import warnings
from datetime import date, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spelling import matches, written

from moebind import GrammarError, Model, Sampler, TokenDataArray, json_schema_to_grammar
from moebind.sampling.json_schema import ANNOTATIONS, KEYWORDS

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
FORMATS = {
    "date": date.fromisoformat,
    "date-time": lambda text: datetime.fromisoformat(text.replace("Z", "+00:00")),
    "time": lambda text: datetime.fromisoformat(f"2000-01-01T{text.replace('Z', '+00:00')}"),
    "uuid": lambda text: re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text).group(),  # type: ignore[union-attr]
}


def satisfies(value: object, schema: dict, root: dict) -> bool:  # type: ignore[type-arg]
    """A validator for what these tests use: a few lines of the specification."""
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[part]
        return satisfies(value, target, root)
    if "const" in schema:
        return json.dumps(value) == json.dumps(schema["const"])
    if "enum" in schema:
        return json.dumps(value) in map(json.dumps, schema["enum"])
    if "allOf" in schema:
        return all(satisfies(value, each, root) for each in schema["allOf"])
    if "anyOf" in schema or "oneOf" in schema:
        fitting = [satisfies(value, each, root) for each in schema.get("anyOf") or schema["oneOf"]]
        return any(fitting) if "anyOf" in schema else sum(fitting) == 1
    kind = schema.get("type")
    if isinstance(kind, list):
        return any(satisfies(value, {**schema, "type": each}, root) for each in kind)
    if kind in {"integer", "number"}:
        number = isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)
        return number and schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if kind is not None and not isinstance(value, TYPES[kind]):
        return False
    if kind == "string":
        assert isinstance(value, str)
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**6):
            return False
        if "format" in schema:
            try:
                FORMATS[schema["format"]](value)
            except (ValueError, AttributeError):
                return False
        return "pattern" not in schema or re.search(schema["pattern"], value) is not None
    if kind == "array":
        assert isinstance(value, list)
        parts = schema.get("prefixItems", schema.get("items"))
        if isinstance(parts, list):
            whole = len(value) == len(parts)
            return whole and all(satisfies(each, part, root) for each, part in zip(value, parts, strict=True))
        count = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**6)
        return count and all(satisfies(each, schema.get("items", {}), root) for each in value)
    if kind == "object":
        assert isinstance(value, dict)
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        known = all(satisfies(value[key], part, root) for key, part in properties.items() if key in value)
        rest = [each for key, each in value.items() if key not in properties]
        extra = more is True or (isinstance(more, dict) and all(satisfies(each, more, root) for each in rest))
        return known and (extra or not rest) and all(key in value for key in schema.get("required", []))
    return True


def check(model: Model, schema: dict, seeds: range = range(5)) -> None:  # type: ignore[type-arg]
    for seed in seeds:
        text = written(model, Sampler.json_schema(model, schema), seed)
        value = json.loads(text)
        assert satisfies(value, schema, schema), text
        text.encode()
        json.dumps(value, ensure_ascii=False).encode()  # no half of a surrogate pair, in escapes either


TREE = {
    "$defs": {"node": {"type": "object", "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}}},
    "type": "object",
    "properties": {"tree": {"$ref": "#/$defs/node"}, "more": {"$ref": "#/properties/tree"}},
    "required": ["tree"],
}
#: As pydantic writes them.
MODEL = {
    "$defs": {
        "Color": {"enum": ["red", "green"], "title": "Color", "type": "string"},
        "Item": {
            "properties": {
                "name": {"title": "Name", "type": "string", "maxLength": 8},
                "color": {"anyOf": [{"$ref": "#/$defs/Color"}, {"type": "null"}], "default": None},
                "due": {"format": "date", "title": "Due", "type": "string"},
                "price": {"title": "Price", "type": "number"},
            },
            "required": ["name", "due", "price"],
            "title": "Item",
            "type": "object",
        },
    },
    "properties": {
        "items": {"items": {"$ref": "#/$defs/Item"}, "maxItems": 2, "title": "Items", "type": "array"},
        "counts": {"additionalProperties": {"minimum": 0, "type": "integer"}, "title": "Counts", "type": "object"},
        "main": {"allOf": [{"$ref": "#/$defs/Item"}], "description": "The main one"},
        "id": {"format": "uuid", "type": "string"},
        "pair": {
            "maxItems": 2,
            "minItems": 2,
            "prefixItems": [{"type": "integer"}, {"type": "boolean"}],
            "type": "array",
        },
    },
    "required": ["items", "main", "pair"],
    "title": "Order",
    "type": "object",
}
SHAPES = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"kind": {"const": "circle"}, "radius": {"type": "number"}},
            "required": ["kind", "radius"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"kind": {"enum": ["square", "cube"]}, "side": {"type": "integer", "minimum": 1}},
            "required": ["kind", "side"],
            "additionalProperties": False,
        },
        {"type": "null"},
    ]
}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "array"},
        {"type": "string"},
        {"type": "number"},
        {"type": ["string", "null", "integer"], "minLength": 2, "minimum": 10},
        {"type": "string", "minLength": 3, "maxLength": 5},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False},
        {"type": "array", "items": [{"const": 1.5}, {"enum": ["é", '"\\\n', {"a": [1, None]}]}], "minItems": 1},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {}, "additionalProperties": False},
        {"type": "object", "properties": {"a b": {"type": "null"}, "a-b": {"type": "boolean"}}, "required": ["a b"]},
        {"properties": {"char": {"type": "string"}, "string": {"type": "integer"}, "space": {"const": 1}}},
        {"type": "object", "properties": {'"\\\n]^': {"type": "null"}}, "required": ['"\\\n]^']},
        {"enum": ["\x85\u2028\r\t\x00\x7f-é🦙"]},  # line ends, to Python, that are none in a grammar
        *({"type": "string", "format": each} for each in FORMATS),
        *({"type": "string", "pattern": each} for each in ("^[a-f]{2,4}-(x|yz)+$", "^a?b*c+$", "^(?:[A-Z][a-z ]*)$")),
        TREE,
        MODEL,
        SHAPES,
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "array", "items": {"$ref": "#/$defs/a%2Fb"}}}} | {},
        {"allOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"enum": [1, 2]}}, "description": "as pydantic writes it"},
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
                {"properties": {"b": {"enum": [1]}}, "required": ["b"]},
            ]
        },
    ],
)
def test_what_is_written_satisfies_the_schema(dense: Model, schema: dict) -> None:  # type: ignore[type-arg]
    if "a/b" in schema.get("$defs", {}):
        assert json.loads(written(dense, Sampler.json_schema(dense, schema), 1)) is not None
        return
    check(dense, schema)
    assert json_schema_to_grammar(schema) == json_schema_to_grammar(json.dumps(schema))


@pytest.mark.parametrize(
    ("low", "high"),
    [(None, 7), (0, None), (3, None), (10, None), (15, None), (99, 101), (100, None), (105, None), (-5, 5),
     (-105, None), (None, -10), (None, 0), (None, 123), (-120, -7), (42, 42), (0, 0), (-1, 0),
     (9, 10), (1, 1000), (987, 1012)],
)  # fmt: skip
def test_bounds_of_integers(dense: Model, low: int | None, high: int | None) -> None:
    schema = {"type": "integer"}
    schema |= {} if low is None else {"minimum": low}  # type: ignore[dict-item]
    schema |= {} if high is None else {"maximum": high}  # type: ignore[dict-item]
    grammar = json_schema_to_grammar(schema)
    inside = [-(10**15) + 1 if low is None else low, 10**15 - 1 if high is None else high]
    numbers = {*range(-130, 131), *range(950, 1050), *inside, inside[0] - 1, inside[1] + 1, 10**12, -(10**12)}
    found = {number for number in numbers if matches(dense, grammar, str(number))}
    assert found == {number for number in numbers if inside[0] <= number <= inside[1]}
    assert not any(matches(dense, grammar, wrong) for wrong in ("", "-", "01", "1.0", "+1"))


def test_bounds_can_be_exclusive_and_fractions(dense: Model) -> None:
    for bounds, expected in (
        ({"exclusiveMinimum": 3, "exclusiveMaximum": 6}, {4, 5}),
        ({"minimum": 2.5, "maximum": 4.5}, {3, 4}),
        ({"exclusiveMinimum": 2.5, "maximum": 9, "exclusiveMaximum": 4.5, "minimum": 1}, {3, 4}),
    ):
        grammar = json_schema_to_grammar({"type": "integer", **bounds})
        assert {n for n in range(-20, 20) if matches(dense, grammar, str(n))} == expected


def test_dates_exist(dense: Model) -> None:
    grammar = json_schema_to_grammar({"type": "string", "format": "date"})
    for text, good in (("2023-02-28", True), ("2023-02-30", False), ("2023-04-31", False), ("2023-12-31", True),
                       ("0000-01-01", False), ("0007-11-30", True)):  # fmt: skip
        assert matches(dense, grammar, f'"{text}"') == good
    string = json_schema_to_grammar({"type": "string"})
    for text, good in ((r"\ud83d", False), (r"\u00e9", True), (r"\uE000", True), (r"\uDFFF", False), ("🦙", True)):
        assert matches(dense, string, f'"{text}"') == good


def names() -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | st.sampled_from(["a", "b", "kind", "a-b"])


def schemas() -> st.SearchStrategy[dict]:  # type: ignore[type-arg]
    leaves = st.one_of(
        st.sampled_from(["boolean", "null", "integer", "number"]).map(lambda kind: {"type": kind}),
        st.tuples(st.integers(-200, 200), st.integers(0, 300)).map(
            lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
        ),
        st.tuples(st.integers(0, 3), st.integers(0, 4)).map(
            lambda pair: {"type": "string", "minLength": pair[0], "maxLength": pair[0] + pair[1]}
        ),
        st.lists(names() | st.integers(-9, 9) | st.none() | st.booleans(), min_size=1, max_size=3).map(
            lambda values: {"enum": values}
        ),
        st.sampled_from(list(FORMATS)).map(lambda kind: {"type": "string", "format": kind}),
    )

    def objects(inner: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:  # type: ignore[type-arg]
        return st.dictionaries(names(), inner, min_size=1, max_size=3).flatmap(
            lambda properties: st.builds(
                lambda required, closed: (
                    {"type": "object", "properties": properties, "required": required}
                    | ({"additionalProperties": False} if closed else {})
                ),
                st.lists(st.sampled_from(list(properties)), unique=True),
                st.booleans(),
            )
        )

    return st.recursive(
        leaves,
        lambda inner: (
            objects(inner)
            | inner.map(lambda items: {"type": "array", "items": items, "maxItems": 3})
            | st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
            | st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"type": "array", "prefixItems": parts})
        ),
        max_leaves=5,
    )


@given(schemas(), st.integers(0, 2**31))
@settings(max_examples=80)
def test_schemas_of_any_shape(dense: Model, schema: dict, seed: int) -> None:  # type: ignore[type-arg]
    try:
        check(dense, schema, range(seed, seed + 1))
    except GrammarError as error:
        assert "rename it" in str(error)  # noqa: PT017  # a property named like a rule of llama-common's


PIECES = [
    "a",
    "b",
    "-",
    " ",
    ".",
    "[ab]",
    "[a-c-]",
    "[b-]",
    "(",
    "(?:",
    ")",
    "|",
    "?",
    "*",
    "+",
    "{2}",
    "{1,3}",
    "{2,}",
    "{,2}",
]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=7).map("".join), st.integers(0, 2**31))
@settings(max_examples=150)
def test_patterns_of_any_shape(dense: Model, pattern: str, seed: int) -> None:
    schema = {"type": "string", "pattern": f"^{pattern}$"}
    try:
        text = written(dense, Sampler.json_schema(dense, schema), seed)
    except GrammarError:
        return
    assert re.fullmatch(pattern, json.loads(text))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ALL = [*ANNOTATIONS, *set().union(*KEYWORDS.values()), "type", "enum", "const", "not", "x-a", "$ref", "anyOf", "oneOf"]
NAMED = st.sampled_from(["string", "object", "array", "#", "#/$defs", ["null"]])


@given(st.dictionaries(st.sampled_from(sorted(ALL)), JSON_VALUES | NAMED, max_size=4))
@settings(max_examples=150)
def test_anything_is_a_grammar_or_an_error(schema: dict) -> None:  # type: ignore[type-arg]
    try:
        assert "root ::= " in json_schema_to_grammar(schema)
    except GrammarError as error:
        assert "schema" in str(error)  # noqa: PT017
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert "root ::= " in json_schema_to_grammar(schema, strict=False)
        except GrammarError as error:  # infinity
            assert "is not JSON" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": "a"}, "form"),
        ({"type": "string", "pattern": "^.*$"}, "at 1"),
        ({"type": "string", "pattern": r"^\d+$"}, "at 1"),
        ({"type": "string", "pattern": "^[^a]$"}, "at 1"),
        ({"type": "string", "pattern": "^a|b$"}, "at 2"),
        ({"type": "string", "pattern": '^"$'}, "at 1"),
        ({"type": "string", "pattern": "^(?=a)b$"}, "at 2"),
        ({"type": "string", "pattern": "^(a$"}, "not complete"),
        ({"type": "string", "pattern": "^a)$"}, "at 2"),
        ({"type": "string", "pattern": "^()$"}, "at 2"),
        ({"type": "string", "pattern": "^a{3,1}$"}, "at 1"),
        ({"type": "string", "pattern": "^a{2001}$"}, "at 1"),
        ({"type": "string", "pattern": "^a+?$"}, "at 2"),
        ({"type": "string", "pattern": "^$\n"}, "form"),
        ({"type": "string", "pattern": "^a$", "minLength": 3}, "beside"),
        ({"type": "string", "format": "email"}, "'format' is \"email\""),
        ({"format": "date", "maxLength": 3}, "beside"),
        ({"type": "string", "maxLength": 5000}, "at most 2000"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "larger"),
        ({"type": "string", "minLength": -1}, "0 or more"),
        ({"type": "string", "minLength": 2.0}, "0 or more"),
        ({"type": "string", "minLength": True}, "0 or more"),
        ({"type": "array", "minItems": 2**32}, "at most 2000"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {}}, "'contains'"),
        ({"type": "array", "prefixItems": [{}], "minItems": 2}, "1 items"),
        ({"type": "array", "items": False, "minItems": 1}, "false"),
        ({"type": "number", "minimum": 0}, "'minimum' of a number"),
        ({"type": ["number", "null"], "multipleOf": 2}, "'multipleOf' of a number"),
        ({"type": "integer", "multipleOf": 2}, "'multipleOf'"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "no integer"),
        ({"type": "integer", "minimum": 10**16}, "no integer"),
        ({"type": "integer", "exclusiveMinimum": True}, "a number"),
        ({"minimum": 3}, "add one"),
        ({"properties": {}, "items": {}}, "add one"),
        ({"type": "object", "required": ["a"]}, "'a' is not among"),
        ({"type": "object", "properties": {"a": {}}, "required": "a"}, "list of names"),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "null"}}, "beside 'properties'"),
        ({"type": "object", "patternProperties": {"a": {}}}, "'patternProperties'"),
        ({"type": "object", "minProperties": 1}, "'minProperties'"),
        ({"type": "object", "properties": []}, "an object"),
        ({"type": "object", "properties": {"date_time": {}}}, "rename it"),
        ({"type": "object", "properties": {"a" * 201: {}}}, "201 characters"),
        ({"type": "object", "properties": {f"p{i}": {} for i in range(200)}}, "more than 128"),
        ({"not": {"type": "null"}}, "'not'"),
        ({"if": {}, "then": {}}, "'if'"),
        ({"nullable": True, "type": "string"}, "'nullable'"),
        ({"$ref": "https://example.com/schema.json"}, "same document"),
        ({"$ref": "other.json#/a"}, "same document"),
        ({"$ref": "#/$defs/missing"}, "nothing at"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}, "type": "null"}, "'type' beside"),
        ({"$ref": "#"}, "refers to itself alone"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "to itself alone"),
        ({"anyOf": [{"type": "null"}], "properties": {"a": {}}}, "'properties' beside 'anyOf'"),
        ({"anyOf": []}, "list of schemas"),
        ({"anyOf": [{"type": "null"}, False]}, "false is not a schema"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "both 0 and 1"),
        ({"oneOf": [{"enum": [1, "a"]}, {"enum": ["a"]}]}, "both 0 and 1"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "both 0 and 1"),
        ({"oneOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"a": {"const": 2}}}]}, "both 0 and 1"),
        ({"oneOf": [{"enum": [i]} for i in range(600)]}, "too many alternatives"),
        ({"allOf": [{"type": "string"}, {"minLength": 2}]}, "different properties"),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"a": {"type": "null"}}}]}, "different properties"),
        ({"type": "string", "enum": ["a", 1]}, "'enum' has 1"),
        ({"enum": []}, "list of values"),
        ({"enum": [10**30]}, "too many digits"),
        ({"const": "a", "minLength": 3}, "none of the values of 'const' is one"),
        ({"type": "text"}, "'type' is \"text\""),
        ({"type": []}, "list of some"),
        ({"type": {}}, "'type'"),
        ({"type": [["string"]]}, "'type'"),
        ({"items": 3, "type": "array"}, "3 is not a schema"),
        ("{", "not JSON"),
        ("[1]", "not a schema"),
        ("{\"const\": NaN}", "not JSON"),
        ("[" * 100_000, "nests deeper"),
        ('{"items":' * 100 + "{}" + "}" * 100, "nests deeper"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": "\ud800"}, "JSON|surrogate|UTF-8"),
        ({"title": "a" * 2**18}, "at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_to_is_refused(schema: dict | str, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(GrammarError, match=message):
        json_schema_to_grammar(schema)


def test_wrong_types(dense: Model) -> None:
    for wrong in (None, 3, True, [1], b"{}"):
        with pytest.raises(TypeError, match="schema"):
            json_schema_to_grammar(wrong)  # type: ignore[arg-type]
    for wrong in ({"const": {1, 2}}, {3: 4, "a": object()}):
        with pytest.raises((TypeError, GrammarError)):
            json_schema_to_grammar(wrong)  # type: ignore[arg-type]
    with pytest.raises(GrammarError, match="email"):
        Sampler.json_schema(dense, {"type": "string", "format": "email"})
    circular: dict[str, object] = {}
    circular["items"] = circular
    with pytest.raises(GrammarError):
        json_schema_to_grammar(circular)


def test_one_of_many_words(demo: Model) -> None:
    random = np.random.default_rng(2)
    words = ["".join(random.choice(list("abcdefghijklmnopqrstuvwxyzé "), 8)) for _ in range(3000)]
    tokens: list[int] = []
    with Sampler.chain([Sampler.json_schema(demo, {"enum": words}), Sampler.dist(1)]) as chain:
        while not tokens or not demo.is_eog_token(tokens[-1]):
            candidates = TokenDataArray.from_logits(random.normal(0, 1, demo.n_vocab))
            tokens.append(candidates.with_sampler(chain).selected_token or 0)
            chain.accept(tokens[-1])
    assert json.loads(demo.tokens_to_str(tokens[:-1])) in words


def test_in_a_real_vocabulary(demo: Model) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}, "required": ["n"]}
    random = np.random.default_rng(1)
    tokens: list[int] = []
    with Sampler.chain([Sampler.json_schema(demo, schema), Sampler.dist(1)]) as chain:
        while not tokens or not demo.is_eog_token(tokens[-1]):
            logits = random.normal(0, 1, demo.n_vocab)
            logits[[token for text in '"},:' for token in demo.str_to_token(text, add_special=False)]] += 9
            tokens.append(TokenDataArray.from_logits(logits).with_sampler(chain).selected_token or 0)
            chain.accept(tokens[-1])
    assert satisfies(json.loads(demo.tokens_to_str(tokens[:-1])), schema, schema)
