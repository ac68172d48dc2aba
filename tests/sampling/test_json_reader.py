"""Schemas that say more than a grammar can: what forbids nothing is taken, the rest is refused or told."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_vocab

from moebind import GrammarError, Model, ModelParams, Sampler, json_schema_to_grammar


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tiny_vocab.write(tmp_path_factory.mktemp("schemas") / "bytes.gguf", tiny_vocab.bpe("gpt-2"))
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        yield model


def allows(model: Model, grammar: str, text: str) -> bool:
    with Sampler.grammar(model, grammar) as sampler:
        tokens = model.str_to_token(text, add_special=False, parse_special=False).tolist()
        return all(map(sampler.try_accept, tokens)) and sampler.try_accept(model.token_eos)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"$ref": "#"}, "#"),
        ({"allOf": [{"$ref": "#"}]}, "#"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "#"),
        ({"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}, "#/properties/a"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}, "#/$defs/A"),
    ],
)
def test_a_schema_that_is_only_itself_describes_nothing(model: Model, schema: dict[str, Any], place: str) -> None:
    told = re.escape(f"the schema at {place}: it refers to itself alone")
    with pytest.raises(GrammarError, match=told) as caught:
        json_schema_to_grammar(schema)
    assert caught.type is GrammarError
    with pytest.warns(UserWarning, match=told):
        grammar = json_schema_to_grammar(schema, strict=False)
    assert allows(model, grammar, '{"a":[1]}')
    inside = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["a"]}
    assert allows(model, json_schema_to_grammar(inside), '{"a":{"a":null}}')


A = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
B = {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"oneOf": [A, {"type": "null"}], "discriminator": {"propertyName": "kind"}}, '{"a":null}', '{"b":null}'),
        ({"const": "cat", "enum": ["cat"], "type": "string"}, '"cat"', '"dog"'),
        ({"const": "cat", "enum": ["dog", "cat"]}, '"cat"', '"dog"'),
        (
            {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"}},
            '{"x":1.5}',
            '{"x":"1"}',
        ),
        ({**A, "unevaluatedProperties": False}, '{"a":null}', '{"a":null,"c":1}'),
        ({"type": "string", "nullable": False}, '"x"', "null"),
        ({"type": "object", "anyOf": [A, B]}, '{"b":null}', "null"),
        ({"type": ["object", "null"], "oneOf": [A, {"type": "null"}]}, "null", "3"),
        ({"$ref": "#/$defs/a", "type": "object", "$defs": {"a": A}}, '{"a":null}', "null"),
        ({**A, "minProperties": 0, "patternProperties": {}}, '{"a":null}', "{}"),
    ],
)
def test_what_forbids_nothing_is_taken(model: Model, schema: dict[str, Any], good: str, bad: str) -> None:
    grammar = json_schema_to_grammar(schema)
    assert allows(model, grammar, good)
    assert not allows(model, grammar, bad)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "string", "nullable": True}, "'nullable'"),
        ({"const": "cat", "enum": ["dog"]}, "'const' is not among"),
        ({"enum": ["long one"], "maxLength": 5}, "none of the values of 'enum'"),
        ({"type": "null", "anyOf": [A, B]}, "'type' beside 'anyOf'"),
        ({"type": "object", "propertyNames": {"pattern": "^a$"}}, "'propertyNames'"),
        ({"type": "object", "unevaluatedProperties": False}, "'unevaluatedProperties'"),
        ({"type": "string", "format": "email"}, "'format' is \"email\""),
    ],
)
def test_what_forbids_something_is_refused(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(GrammarError, match=told):
        json_schema_to_grammar(schema)


@pytest.mark.parametrize(
    ("schema", "lost", "good", "bad"),
    [
        ({"type": "string", "maxLength": 10_000}, ["#: 'maxLength' is 10000"], '"x"', "x"),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 5000}, ["#: 'maxItems' is 5000"], "[null]", "[1]"),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["#: 'maximum' of", "#: 'minimum' of"], "7.5", '"7"'),
        ({"type": "string", "format": "email"}, ["#: 'format' is"], '"x"', "x"),
        ({"type": "string", "pattern": "a"}, ["#: 'pattern' is"], '"b"', "b"),
        ({"type": "string", "pattern": "^a+$", "maxLength": 3}, ["#: 'pattern' beside 'maxLength'"], '"aaaa"', '"b"'),
        ({"type": "array", "uniqueItems": True, "items": {"type": "integer"}}, ["'uniqueItems'"], "[1,1]", '["a"]'),
        ({"type": "integer", "multipleOf": 5, "minimum": 0}, ["'multipleOf'"], "7", "-7"),
        ({"not": {}, "type": "null"}, ["'not'"], "null", "1"),
        ({"type": "object", "properties": {"a": False}}, ["#/properties/a: false is not"], '{"a":3}', "3"),
        ({"type": "object", "required": ["x"], "properties": {"a": True}}, ["property 'x'"], '{"a":1}', "1"),
        ({"oneOf": [{"type": "string"}, {"enum": ["a"]}]}, ["a text may satisfy both"], '"a"', "1"),
        ({"allOf": [A, {"type": "object"}]}, ["#/allOf: only objects"], '{"a":null}', "1"),
        ({"$ref": "https://example.com/x"}, ["'$ref' is"], "3", "x"),
        ({"type": "strange"}, ["'type' is \"strange\""], "3", "x"),
        (
            {"type": "object", "properties": {"a": {"not": {}}, "b": {"type": "string", "format": "email"}}},
            ["#/properties/a: 'not'", "#/properties/b: 'format'"],
            '{"a":3,"b":"x"}',
            '{"b":3}',
        ),
    ],
)
def test_what_cannot_be_held_to_is_left_out_and_told(
    model: Model, schema: dict[str, Any], lost: list[str], good: str, bad: str
) -> None:
    with pytest.raises(GrammarError, match="; leave it out, or pass strict=False$"):
        json_schema_to_grammar(schema)
    with pytest.warns(UserWarning, match="the grammar does not hold a text to all of the schema") as caught:
        grammar = json_schema_to_grammar(schema, strict=False)
    assert all(each.filename == __file__ for each in caught)
    messages = [str(each.message) for each in caught]
    assert len(messages) == len(lost)
    for message, part in zip(sorted(messages), sorted(lost), strict=True):
        assert part in message
    assert allows(model, grammar, good)
    assert not allows(model, grammar, bad)


def test_nothing_is_told_of_what_is_held_to(model: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert json_schema_to_grammar(A, strict=False) == json_schema_to_grammar(A)
        Sampler.json_schema(model, A, strict=False).close()


def test_deep_schemas_with_a_fault_at_each_level_take_no_time() -> None:
    schema: dict[str, Any] = {"type": "null", "not": {}}
    for _ in range(60):
        schema = {"type": "object", "properties": {"a": schema}, "not": {}, "if": {}, "required": ["zz"]}
    with pytest.warns(UserWarning, match="does not hold") as caught:
        json_schema_to_grammar(schema, strict=False)
    assert len(caught) > 180


@pytest.mark.parametrize("schema", ["{", [], {"$comment": "a" * 2**18}])
def test_strict_is_named_only_where_it_helps(schema: Any) -> None:
    for strict in (True, False):
        with pytest.raises((GrammarError, TypeError)) as raised:
            json_schema_to_grammar(schema, strict=strict)
        assert "strict" not in str(raised.value)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"pattern": "^a$", "minLength": 1, "maxLength": 3}, "'pattern' beside 'minLength' cannot be expressed in a "),
        ({"format": "date", "maxLength": 3}, "'format' beside 'maxLength' cannot be expressed in a grammar"),
        ({"pattern": "^a$", "format": "date"}, "'pattern' beside 'format' cannot be expressed in a grammar"),
    ],
)
def test_what_is_beside_is_named_by_its_keyword(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(GrammarError, match=told):
        json_schema_to_grammar({"type": "string", **schema})
