"""Single values, texts and numbers of schemas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny_vocab

from moebind import Model, ModelParams, Sampler, json_schema_to_grammar


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
    ("schema", "good", "bad"),
    [
        ({"enum": ["a", "b"], "type": "string", "maxLength": 5}, '"b"', '"c"'),
        ({"enum": ["a", "long one"], "maxLength": 5}, '"a"', '"long one"'),
        ({"enum": ["a", [1, 2]], "minItems": 1, "minLength": 2}, "[1,2]", '"a"'),
        ({"enum": [1, 5, 9], "minimum": 2, "exclusiveMaximum": 9}, "5", "9"),
        ({"enum": [1, 5, True], "exclusiveMinimum": 1, "maximum": 5}, "true", "1"),
        ({"type": "string", "format": "password"}, '"x"', "x"),
        ({"type": "string", "format": "path", "maxLength": 3}, '"a/b"', '"a/bc"'),
    ],
)
def test_values_beside_limits_and_formats_that_allow_anything(
    model: Model, schema: dict[str, Any], good: str, bad: str
) -> None:
    grammar = json_schema_to_grammar(schema)
    assert allows(model, grammar, good)
    assert not allows(model, grammar, bad)
