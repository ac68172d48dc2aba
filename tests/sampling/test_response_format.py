"""Schemas that are wrapped, as in OpenAI's response_format: the answer says where the schema is."""

from __future__ import annotations

import json
import re

import pytest
from spelling import written

from moebind import GrammarError, Model, Sampler, json_schema_to_grammar

WHOLE = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": WHOLE}},
            "under ['json_schema']['schema'] alone",
        ),
        ({"name": "x", "strict": True, "schema": WHOLE}, "give what is under ['schema'] alone"),
        ({"type": "json_schema", "name": "x", "schema": WHOLE}, "give what is under ['schema'] alone"),
        ({"type": "json_object", "schema": WHOLE}, "give what is under ['schema'] alone"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": WHOLE}}},
            "['json_schema']['schema'] alone",
        ),
        ({"response_format": {"type": "json_object"}}, 'write {"type": "object"}'),
        ({"type": "json_object"}, '{"type": "object"} is any JSON object'),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_response_format_has_the_schema_inside(
    dense: Model, given: dict[str, object], said: str, strict: bool
) -> None:
    for form in (given, json.dumps(given)):
        with pytest.raises(GrammarError, match=re.escape(said)):
            json_schema_to_grammar(form, strict=strict)
    with pytest.raises(GrammarError, match=re.escape(said)):
        dense.chat_format([{"role": "user", "content": "a"}], json_schema=given, strict=strict)


def test_properties_may_have_the_names_of_a_response_format(dense: Model) -> None:
    names = ("response_format", "json_schema", "schema", "name", "strict")
    schema = {"type": "object", "properties": {name: {"type": "boolean"} for name in names}, "required": [*names]}
    assert json.loads(written(dense, Sampler.json_schema(dense, schema), 0)).keys() == set(names)


def test_the_empty_schema_is_any_json(dense: Model) -> None:
    assert json_schema_to_grammar({}) == json_schema_to_grammar("{}")
    for seed in range(5):
        json.loads(written(dense, Sampler.json_schema(dense, {}), seed))


def test_of_a_class_its_schema_is_meant() -> None:
    class Form:
        @classmethod
        def model_json_schema(cls) -> dict[str, object]:
            return WHOLE

    for given in (Form, Form()):
        with pytest.raises(TypeError, match=re.escape("it takes a dict or JSON text: Form.model_json_schema()")):
            json_schema_to_grammar(given)  # type: ignore[arg-type]
