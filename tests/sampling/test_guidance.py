"""Grammars of llguidance, beside moebind's own."""

from __future__ import annotations

import gc
import json
import re
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CPU, SMALL
from moebind import ClosedError, GrammarError, Model, Sampler, SamplerError, TokenDataArray, TokenizeError
from moebind.sampling import guidance

MakeTiny = Callable[..., Path]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "bc"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tiny_path: MakeTiny) -> Any:
    with Model.load_from_file(tiny_path(n_expert=4), CPU) as model:
        yield model


def written(model: Model, limits: Sampler, seed: int = 1, most: int = 120) -> str:
    """A text that the model writes within limits."""
    with model.new_context(SMALL) as context:
        sampler = Sampler.chain([limits, Sampler.temp(1.5), Sampler.dist(seed)])
        reply = context.generate("x", max_tokens=most, sampler=sampler).complete()
    assert reply.stop_reason == "eog"
    return reply.text


@pytest.mark.parametrize("seed", range(8))
def test_json_holds_to_its_schema(model: Model, seed: int) -> None:
    person = json.loads(written(model, Sampler.llguidance(model, json_schema=PERSON), seed))
    assert set(person) == {"name", "age", "tags"}
    assert len(person["name"]) <= 5
    assert 0 <= person["age"] <= 99
    assert len(person["tags"]) <= 2
    assert {*person["tags"]} <= {"a", "bc"}


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": r"\d{4}-\d{2}"}, r"\d{4}-\d{2}"),
        ({"grammar": 'root ::= "yes" | "no" [!?]{2}'}, r"yes|no[!?]{2}"),
        ({"lark": 'start: "ab" /[c-e]{3}/'}, r"ab[c-e]{3}"),
        ({"json_schema": '{"enum": [1, 20]}'}, r"1|20"),
    ],
    ids=lambda form: next(iter(form)) if isinstance(form, dict) else "",
)
def test_every_form(model: Model, form: dict[str, str], pattern: str) -> None:
    assert re.fullmatch(pattern, written(model, Sampler.llguidance(model, **form)))


def allowed(model: Model, sampler: Sampler) -> set[bytes]:
    """What may come next."""
    candidates = TokenDataArray.from_logits(np.zeros(model.n_vocab, np.float32))
    sampler.apply(candidates)
    left = candidates.data["id"][np.isfinite(candidates.data["logit"])].tolist()
    return {b"the end" if model.is_eog_token(token) else model.token_to_bytes(token) for token in left}


def of_byte(model: Model, byte: int) -> int:
    """The token that is this byte, and nothing else."""
    return next(
        token for token, piece in model.tokens() if piece == bytes([byte]) and not model.is_control_token(token)
    )


@given(number=st.integers(0, 10**6), cut=st.integers(0, 6))
@settings(max_examples=60)
def test_the_next_token_is_what_moebinds_grammar_says(model: Model, number: int, cut: int) -> None:
    pattern = 'root ::= ("0" | [1-9] [0-9]*) ("." [0-9]+)?'
    found = []
    for sampler in (Sampler.grammar(model, pattern), Sampler.llguidance(model, grammar=pattern)):
        with sampler:
            sampler.accept_many([of_byte(model, byte) for byte in f"{number}"[:cut].encode()])
            found.append(allowed(model, sampler))
    assert found[0] == found[1]


def test_copies_and_new_beginnings(model: Model) -> None:
    first = Sampler.llguidance(model, regex="ab")
    a, b = (of_byte(model, byte) for byte in b"ab")
    first.accept(a)
    second = first.clone()
    first.reset()
    assert allowed(model, first) == {b"a"}
    assert allowed(model, second) == {b"b"}
    second.accept(b)
    assert allowed(model, second) == {b"the end"}
    assert model.token_eos is not None
    second.accept(model.token_eos)
    first.accept_many([a, b])
    assert allowed(model, first) == {b"the end"}


def test_text_is_spelled_as_it_is(model: Model) -> None:
    """SentencePiece puts a space before a text, which is none of the text's."""
    tokens = guidance._Tokens(model)
    for text in ("a", "the cat", " the", "\u00e9\U0001f9b9", "<s>", ""):
        assert b"".join(tokens.tokens[token] for token in tokens(text)) == text.encode()


def test_sorted_candidates_stay_sorted(model: Model) -> None:
    candidates = TokenDataArray.from_logits(np.linspace(0, 1, model.n_vocab, dtype=np.float32))
    candidates.sort()
    Sampler.llguidance(model, regex="[a-c]").apply(candidates)
    assert candidates.sorted
    assert {model.token_to_bytes(token) for token in candidates.data["id"].tolist()} == {b"a", b"b", b"c"}
    assert np.all(np.diff(candidates.data["logit"]) <= 0)


@pytest.mark.parametrize(
    ("form", "error", "message"),
    [
        ({}, TypeError, "takes one of grammar, json_schema, regex, lark; given: none"),
        ({"regex": "a", "lark": "b"}, TypeError, "given: regex, lark"),
        ({"regex": 3}, TypeError, r"regex is 3 \(int\); it takes a regular expression"),
        ({"json_schema": [1]}, TypeError, "it takes a dict, or JSON text"),
        ({"regex": "[0-9"}, GrammarError, "regex is refused by llguidance: .*unclosed character class"),
        ({"grammar": 'other ::= "a"'}, GrammarError, "grammar is refused"),
        ({"grammar": 'root ::= "a'}, GrammarError, "grammar is refused"),
        ({"lark": "start: nothing"}, GrammarError, "lark is refused"),
        ({"json_schema": {"type": "objekt"}}, GrammarError, "json_schema is refused by llguidance: .*objekt"),
        ({"json_schema": "{"}, GrammarError, "json_schema is refused"),
        ({"json_schema": {"a": object()}}, GrammarError, "json_schema is refused"),
    ],
)
def test_what_is_refused(model: Model, form: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Sampler.llguidance(model, **form)


def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match="it takes a Model"):
        Sampler.llguidance("model.gguf", regex="a")  # type: ignore[arg-type]


def test_it_is_for_one_text(model: Model) -> None:
    chain = Sampler.chain([Sampler.llguidance(model, regex="[a-c]{3}"), Sampler.greedy()])
    with model.new_context(SMALL) as context:
        context.generate("x", sampler=chain, max_tokens=2).complete()
        for again in (chain, chain.clone()):
            with pytest.raises(SamplerError, match="has chosen a text, and its grammar goes on there: reset"):
                context.generate("x", sampler=again)
        chain.reset()
        assert re.fullmatch("[a-c]{3}", context.generate("x", sampler=chain, max_tokens=9).complete().text)


def test_alone_it_chooses_nothing(model: Model) -> None:
    with model.new_context(SMALL) as context:
        with pytest.raises(SamplerError, match="filters, but does not choose: end the chain in greedy"):
            context.generate("x", sampler=Sampler.llguidance(model, regex="a"))


def test_objects_are_open_unless_the_schema_closes_them(model: Model) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    for closed, after in ((False, {b",", b"}"}), (True, {b"}"})):
        with Sampler.llguidance(
            model, json_schema={**schema, **({"additionalProperties": False} if closed else {})}
        ) as sampler:
            sampler.accept_many([of_byte(model, byte) for byte in b'{"a":1'])
            assert {*map(bytes.strip, allowed(model, sampler))} - {b""} == after


def test_a_token_that_was_not_allowed(model: Model) -> None:
    sampler = Sampler.llguidance(model, regex="ab")
    with pytest.raises(SamplerError, match="does not allow token") as raised:
        sampler.accept(of_byte(model, ord("b")))
    assert str(of_byte(model, ord("b"))) in str(raised.value)
    assert allowed(model, sampler) == {b"a"}
    sampler.reset()


def test_after_a_sampler_that_left_nothing(model: Model) -> None:
    candidates = TokenDataArray.from_logits(np.zeros(model.n_vocab, np.float32))
    candidates.keep([of_byte(model, ord("x"))])
    with pytest.raises(SamplerError, match="put the sampler of llguidance first"):
        Sampler.llguidance(model, regex="ab").apply(candidates)


def test_a_model_is_not_kept(tiny_path: MakeTiny) -> None:
    model = Model.load_from_file(tiny_path(n_expert=4, seed=5), CPU)
    sampler = Sampler.llguidance(model, json_schema=PERSON)
    assert guidance._tokenizer(model) is guidance._tokenizer(model)
    gone = weakref.ref(model)
    candidates = TokenDataArray.from_logits(np.zeros(model.n_vocab, np.float32))
    model.close()
    sampler.apply(candidates)  # llguidance has the tokens
    with pytest.raises(ClosedError):
        Sampler.llguidance(model, regex="a")
    del model
    gc.collect()
    assert gone() is None
    sampler.apply(candidates)


def test_without_the_package(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"pip install 'moebind\[guidance\]'"):
        Sampler.llguidance(model, regex="a")


def test_without_a_token_that_ends_a_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model), "is_eog_token", lambda self, token: False)
    monkeypatch.setattr(guidance, "_tokenizers", weakref.WeakKeyDictionary())
    with pytest.raises(TokenizeError, match="no token that ends a text"):
        Sampler.llguidance(model, regex="a")


def test_forms_have_names(model: Model) -> None:
    with pytest.raises(
        TypeError, match=r"takes model by position, and no more: .* one of grammar, json_schema, regex, lark"
    ):
        Sampler.llguidance(model, PERSON)  # type: ignore[misc]
    with pytest.raises(TypeError, match="has no argument 'schema'; it is 'json_schema' here"):
        Sampler.llguidance(model, schema=PERSON)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="has no argument 'json_schema'; it is 'schema' here"):
        Sampler.json_schema(model, json_schema=PERSON)  # type: ignore[call-arg]
