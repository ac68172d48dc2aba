"""Short forms of a chain: which chain they stand for, and what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import SMALL
from moebind import Context, Model, Sampler
from moebind.sampling import settings
from moebind.sampling.settings import Settings

PROMPT = [1, 7, 8, 9]
NONE = np.array([1], np.int32)
HEADER = Path(__file__).resolve().parents[2] / "vendor/llama.cpp/common/common.h"


@pytest.fixture
def context(dense: Model):  # type: ignore[no-untyped-def]
    with dense.new_context(SMALL) as context:
        yield context


def names(**given: Any) -> list[str]:
    sampler = Settings(**given).sampler(NONE)
    assert sampler is not None
    return [part.name for part in sampler]


def test_what_is_not_given_is_llama_cpps() -> None:
    struct = HEADER.read_text(encoding="utf-8").partition("struct common_params_sampling {")[2]
    told = dict(re.findall(r"(\w+)\s*=\s*(-?[\d.]+)f?;", struct.partition("std::vector<enum")[0]))
    assert float(told["temp"]) == settings.TEMPERATURE
    assert int(told["top_k"]) == settings.TOP_K
    assert float(told["top_p"]) == settings.TOP_P
    assert float(told["min_p"]) == settings.MIN_P
    assert int(told["penalty_last_n"]) == settings.PENALTY_LAST_N
    assert [float(told[f"penalty_{name}"]) for name in ("repeat", "freq", "present")] == [1, 0, 0]
    order = re.findall(r"COMMON_SAMPLER_TYPE_(\w+)", struct.partition("samplers = {")[2].partition("}")[0])
    ours = ["PENALTIES", "TOP_K", "TOP_P", "MIN_P", "TEMPERATURE"]
    assert [name for name in order if name in ours] == ours


def test_the_order_is_llama_cpps() -> None:
    assert names(seed=1) == ["top-k", "top-p", "min-p", "temp", "dist"]
    assert names(repeat_penalty=1.1) == ["penalties", "top-k", "top-p", "min-p", "temp", "dist"]
    assert names(temperature=1.0, top_k=0, top_p=1.0, min_p=0) == ["?temp", "dist"]  # which does nothing
    assert names(top_k=-1, presence_penalty=0.0, frequency_penalty=0) == ["top-p", "min-p", "temp", "dist"]
    assert names(temperature=0, top_k=5, seed=3) == ["greedy"]
    assert names(temperature=0.0, frequency_penalty=0.5) == ["penalties", "greedy"]
    assert Settings().sampler(NONE) is None


def test_seeds() -> None:
    def seed(value: int | None, offset: int = 0) -> int | None:
        sampler = Settings(temperature=1.0, seed=value).sampler(NONE, offset)
        assert sampler is not None
        return sampler.seed

    assert seed(5) == 5
    assert seed(5, 3) == 8
    assert seed(0) == 0
    assert seed(2**32 - 2, 1) == 0
    # None is no seed to a sampler: it would not tell which one it took.
    assert len({seed(None) for _ in range(9)} | {seed(-1) for _ in range(9)}) > 15


def test_they_are_the_chain(context: Context) -> None:
    def chain(*parts: Sampler, seed: int = 5) -> Sampler:
        return Sampler.chain([*parts, Sampler.dist(seed)])

    rest = (0.95, 0), (0.05, 0)
    pairs: list[tuple[dict[str, Any], Sampler]] = [
        (
            {"temperature": 1.7, "seed": 5},
            chain(Sampler.top_k(40), Sampler.top_p(*rest[0]), Sampler.min_p(*rest[1]), Sampler.temp(1.7)),
        ),
        (
            {"top_k": 9, "top_p": 0.7, "min_p": 0.2, "temperature": 3.0, "seed": 5},
            chain(Sampler.top_k(9), Sampler.top_p(0.7), Sampler.min_p(0.2), Sampler.temp(3.0)),
        ),
        (
            {"top_k": 0, "top_p": 1, "min_p": 0, "temperature": 1, "seed": 5, "repeat_penalty": 1.9},
            chain(Sampler.penalties(64, 1.9).with_tokens(PROMPT), Sampler.temp(1.0)),
        ),
        ({"temperature": 0, "seed": 5}, Sampler.greedy()),
    ]
    for given, sampler in pairs:
        tokens = context.generate(PROMPT, max_tokens=20, **given).complete().tokens
        assert tokens == context.generate(PROMPT, max_tokens=20, sampler=sampler).complete().tokens
        assert tokens == context.generate(PROMPT, max_tokens=20, **given).complete().tokens


def test_seeds_are_random_without_one(context: Context) -> None:
    texts = {context.generate(PROMPT, max_tokens=9, temperature=3.0, top_k=0).complete().tokens for _ in range(5)}
    assert len(texts) == 5


def test_penalties_count_the_prompt(context: Context) -> None:
    for penalty in ({"repeat_penalty": 1e6}, {"presence_penalty": 1e6}, {"frequency_penalty": 1e6}):
        likeliest = context.generate(PROMPT, max_tokens=1).complete().tokens[0]
        # llama.cpp divides positive logits, and multiplies negative ones.
        prompt = [*PROMPT, likeliest]
        tokens = context.generate(prompt, max_tokens=30, temperature=0, **penalty).complete().tokens
        assert len({*prompt, *tokens}) == len({*prompt}) + len(tokens)
    far = [likeliest, *[5] * 64]
    assert Settings(repeat_penalty=2.0).sampler(np.array(far, np.int32)) is not None


def test_json_schemas(context: Context) -> None:
    schema = {"enum": ["red", "green"]}
    for options in ({}, {"temperature": 2.0, "seed": 1}, {"sampler": Sampler.dist(3)}, {"temperature": 0}):
        for given in (schema, json.dumps(schema)):
            completion = context.generate(PROMPT, json_schema=given, **options).complete()
            assert json.loads(completion.text) in {"red", "green"}
            assert completion.stop_reason == "eog"


def test_a_sampler_that_is_held_to_a_schema_remembers(context: Context) -> None:
    """The caller's own is asked, not a copy."""
    seen = []

    class Noting:
        def __call__(self, candidates: object) -> None: ...

        def accept(self, token: int) -> None:
            seen.append(token)

    with Sampler.chain([Sampler.from_callable(Noting()), Sampler.greedy()]) as sampler:
        tokens = context.generate(PROMPT, sampler=sampler, json_schema={"type": "boolean"}).complete().tokens
    assert tuple(seen) == tokens


def test_chats(talking: Context) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1.5, "top_p": 1.0, "reuse_prefix": False}
    one, again, other = (talking.chat(hello, **options, seed=seed).complete() for seed in (1, 1, 2))
    assert one == again != other
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    reply = talking.chat(hello, json_schema=schema, temperature=1.5, seed=3, max_tokens=40).complete()
    assert set(json.loads(str(reply["content"]))) == {"a"}


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"temperature": -0.1}, ValueError, "temperature is -0.1; it takes 0 or more"),
    ({"temperature": "warm"}, TypeError, "temperature is 'warm'; it takes a number"),
    ({"temperature": float("nan")}, ValueError, "temperature"),
    ({"temperature": True}, TypeError, "temperature"),
    ({"top_k": -2}, ValueError, "top_k is -2; it takes -1"),
    ({"top_k": 4.5}, TypeError, "top_k"),
    ({"top_p": 1.1}, ValueError, "top_p is 1.1; it takes 0 to 1"),
    ({"min_p": -1}, ValueError, "min_p"),
    ({"repeat_penalty": 0}, ValueError, "repeat_penalty"),
    ({"presence_penalty": "x"}, TypeError, "presence_penalty"),
    ({"frequency_penalty": float("inf")}, ValueError, "frequency_penalty"),
    ({"seed": -2}, ValueError, "seed is -2"),
    ({"seed": 2**32}, ValueError, "seed"),
    ({"seed": 1.0}, TypeError, "seed"),
    (
        {"sampler": Sampler.greedy(), "seed": 1},
        TypeError,
        r"sampler and seed are both given.* put Sampler.dist\(seed\)",
    ),
    ({"sampler": Sampler.greedy(), "top_p": 0.5}, TypeError, r"leave one of them out, or put Sampler.top_p\(0.95\)"),
    ({"json_schema": 3}, TypeError, "schema"),
    ({"json_schema": {"not": {}}}, ValueError, "not"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_arguments(context: Context, options: dict[str, Any], error: type[Exception], message: str) -> None:
    calls = [
        lambda: context.generate(PROMPT, **options),
        lambda: context.generate_many([PROMPT], **options),
        lambda: context.chat([{"role": "user", "content": "x"}], template="chatml", **options),
    ]
    for call in calls:
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(error, match=rf"prompts\[1\]: .*{message}"):
        context.generate_many([PROMPT, {"prompt": PROMPT, **options}])


def test_every_setting_has_its_sampler() -> None:
    fields = [*Settings.__dataclass_fields__]
    assert [*settings.SAMPLERS][: len(fields)] == fields
