"""Grammars of schemas in which rules of llama-common's are replaced: the order of properties, escaped characters."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import tiny_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from moebind import GrammarError, Model, ModelParams, Sampler, json_schema_to_grammar
from moebind.sampling.json_rules import CORRECTED, with_corrected_rules


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tiny_vocab.write(tmp_path_factory.mktemp("schemas") / "bytes.gguf", tiny_vocab.bpe("gpt-2"))
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        yield model


def allows(model: Model, grammar: str, text: str) -> bool:
    with Sampler.grammar(model, grammar) as sampler:
        tokens = model.str_to_token(text, add_special=False, parse_special=False).tolist()
        return all(map(sampler.try_accept, tokens)) and sampler.try_accept(model.token_eos)


# --- the order of properties ---


@settings(max_examples=150)
@given(st.lists(st.booleans(), min_size=1, max_size=5), st.sets(st.integers(0, 4)), st.permutations(range(5)))
def test_properties_come_in_the_order_of_the_schema(
    model: Model, required: list[bool], left_out: set[int], order: list[int]
) -> None:
    names = [f'p{i}"\\é' for i in range(len(required))]
    schema = {
        "type": "object",
        "properties": {name: {"type": "null"} for name in names},
        "required": [name for name, must in zip(names, required, strict=True) if must],
    }
    grammar = json_schema_to_grammar(schema)
    shown = [name for i, name in enumerate(names) if i not in left_out]
    complete = all(name in shown for name in schema["required"])
    text = json.dumps(dict.fromkeys(shown), ensure_ascii=False)
    assert allows(model, grammar, text) == complete
    shuffled = [names[i] for i in order if i < len(names) and names[i] in shown]
    if shuffled != shown:
        assert not allows(model, grammar, json.dumps(dict.fromkeys(shuffled), ensure_ascii=False))


def test_orders_that_llama_common_cannot_tell_apart_are_both_taken(model: Model) -> None:
    one = {"type": "object", "properties": {"a": True, "b": True}, "required": ["b"]}
    other = {"type": "object", "properties": {"b": True, "a": True}, "required": ["b"]}
    grammar = json_schema_to_grammar({"type": "array", "prefixItems": [one, other]})
    assert allows(model, grammar, '[{"a": 1, "b": 2}, {"b": 1, "a": 2}]')
    assert not allows(model, grammar, '[{"a": 1}, {"b": 1, "a": 2}]')


# --- rules of llama-common's ---


@pytest.mark.parametrize("text", ["ok 😀", "é", "a\ud83d", "\ude00", "\ud83dx"])
def test_escaped_characters_beyond_the_first_plane(model: Model, text: str) -> None:
    grammar = json_schema_to_grammar({"type": "string", "maxLength": 4})
    whole = not any("\ud800" <= each <= "\udfff" for each in text)
    assert allows(model, grammar, json.dumps(text)) == whole


def test_rules_that_are_not_known_are_refused() -> None:
    for rule in CORRECTED:
        assert with_corrected_rules(f"root ::= char\n{rule}\n") == f"root ::= char\n{CORRECTED[rule]}\n"
        with pytest.raises(GrammarError, match="a rule that moebind does not know"):
            with_corrected_rules(f"root ::= char\n{rule} | [a]\n")
