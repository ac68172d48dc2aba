"""Values in messages: short, whatever they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import moebind
from conftest import SMALL
from moebind import (
    Batch,
    BatchExt,
    Context,
    ContextParams,
    ContextPool,
    Model,
    ModelParams,
    Sampler,
    SeqState,
    TokenDataArray,
)
from moebind._core.shown import SHOWN_MAX, shown
from moebind.server import Server

LARGE = 2_000_000
#: Of a length that is quickly tokenised, where it is read as a text.
VALUES: dict[str, Any] = {"str": "a" * 100_000, "bytes": b"\xff" * LARGE, "list": ["a" * 100_000] * 20}
#: No message is longer, however long its own sentences are.
MESSAGE_MAX = 2000


@pytest.mark.parametrize(
    "value",
    [
        *("", "it's", "a\n", b"\x00", bytearray(b"a"), 5, -(2**200), 1.5, None, True, int, [], [1, "a"], (), (1,), {}),
        *({"b": 1, "a": [2]}, set(), {3, 1}, frozenset("a"), range(3), "a" * 98, [[[1]]], moebind.Ftype.Q4_0),
    ],
)
def test_short_values_are_shown_whole(value: object) -> None:
    assert shown(value) == repr(value)


class Text(str):
    pass


class Numbers(list[int]):
    pass


class Broken:
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("value", "beginning"),
    [
        ("a" * LARGE, "'aaaa"),
        (b"\xff" * LARGE, r"b'\xff\xff"),
        (bytearray(LARGE), r"bytearray(b'\x00"),
        (Text("a" * LARGE), "'aaaa"),
        (Numbers(range(LARGE)), "[0, 1, 2,"),
        (["a" * LARGE] * 100, "['aaaa"),
        ([[["a" * LARGE] * 100] * 100] * 100, "[[['aaaa"),
        ({"a" * LARGE: "b" * LARGE}, "{'aaaa"),
        (dict.fromkeys(range(LARGE)), "{0: None, 1: None,"),
        (tuple(range(LARGE)), "(0, 1, 2,"),
        (np.arange(LARGE), "array([      0,"),
        pytest.param(10**10000, "<int of 33220 bits>", id="digits"),
        (ContextParams(), "ContextParams("),
        (Broken(), "<Broken object>"),
    ],
)
def test_the_beginning_of_others_is_shown(value: object, beginning: str) -> None:
    text = shown(value)
    assert text.startswith(beginning)
    assert len(text) <= SHOWN_MAX


def test_what_holds_itself() -> None:
    value: list[object] = [1]
    value.append(value)
    assert shown(value).startswith("[1, [1,")


class Counted(str):
    """Counts what is made of it."""

    made = 0

    def __getitem__(self, at: Any) -> str:
        part = super().__getitem__(at)
        Counted.made += len(part)
        return part


def test_no_more_of_a_value_is_made_than_is_shown() -> None:
    assert shown([Counted("a" * LARGE)] * 1000).startswith("['aaaa")
    assert 0 < Counted.made <= 1000 * SHOWN_MAX


@pytest.fixture(scope="module")
def worked(moe: Model) -> Iterator[Context]:
    with moe.new_context(SMALL) as context:
        yield context


#: Calls that take a value of any kind, and refuse what is not meant for them.
CALLS: dict[str, Callable[[Context, Any], object]] = {
    "generate": lambda c, v: list(c.generate(v, max_tokens=1)),
    "generate_many": lambda c, v: c.generate_many([v], max_tokens=1).complete(),
    "generate_many, a str": lambda c, v: c.generate_many(v).complete(),
    "embed": lambda c, v: c.model.embed([v]),
    "embed, no list": lambda c, v: c.model.embed(v),
    "rerank": lambda c, v: c.model.rerank(v, [v]),
    "str_to_token": lambda c, v: c.model.str_to_token(v, v),
    "tokens_to_str": lambda c, v: c.model.tokens_to_str(v),
    "token_to_piece": lambda c, v: c.model.token_to_piece(v),
    "decode": lambda c, v: c.decode(v),
    "process": lambda c, v: c.process(v),
    "encode": lambda c, v: c.encode(v),
    "state_set": lambda c, v: c.state_set(v),
    "state_seq_set": lambda c, v: c.state_seq_set(v, 0),
    "state_load_file": lambda c, v: c.state_load_file(v),
    "state_save_file": lambda c, v: c.state_save_file(v),
    "SeqState.from_bytes": lambda _, v: SeqState.from_bytes(v),
    "stop": lambda c, v: c.generate("a", stop=[v, v]),
    "stop, nested": lambda c, v: c.generate("a", stop=[[v]]),
    "seq_id": lambda c, v: c.generate("a", seq_id=v),
    "temperature": lambda c, v: c.generate("a", temperature=v),
    "max_tokens": lambda c, v: c.generate("a", max_tokens=v),
    "logprobs": lambda c, v: c.generate("a", logprobs=v),
    "sampler": lambda c, v: c.generate("a", sampler=v),
    "json_schema": lambda c, v: c.generate("a", json_schema=v),
    "json_schema, a list": lambda c, v: c.generate("a", json_schema=[v]),
    "json_schema, a type": lambda c, v: c.generate("a", json_schema={"type": v}),
    "json_schema, an enum": lambda c, v: c.generate("a", json_schema={"type": "integer", "enum": [v]}),
    "json_schema, a reference": lambda c, v: c.generate("a", json_schema={"$ref": v}),
    "chat": lambda c, v: c.chat(v),
    "role": lambda c, v: c.chat([{"role": v}], template="chatml"),
    "tools": lambda c, v: c.chat([{"role": "user", "content": "a"}], template="chatml", tools=v),
    "template": lambda c, v: c.chat([{"role": "user", "content": "a"}], template=v),
    "tool_choice": lambda c, v: c.chat([{"role": "user", "content": "a"}], template="chatml", tool_choice=v),
    "parse_chat_response": lambda c, v: c.model.parse_chat_response(v, v),
    "chat_template": lambda c, v: c.model.chat_template(v),
    "logit_bias": lambda c, v: Sampler.logit_bias(c.model.n_vocab, v),
    "logit_bias, a mapping": lambda c, v: Sampler.logit_bias(c.model.n_vocab, {1: v}),
    "chain": lambda _, v: Sampler.chain([v]),
    "top_k": lambda _, v: Sampler.top_k(v),
    "grammar": lambda c, v: Sampler.grammar(c.model, v),
    "dry": lambda c, v: Sampler.dry(c.model, seq_breakers=[v]),
    "from_callable": lambda _, v: Sampler.from_callable(v),
    "from_logits": lambda _, v: TokenDataArray.from_logits(v),
    "from_embeddings": lambda _, v: Batch.from_embeddings(v),
    "get_one": lambda _, v: Batch.get_one(v),
    "BatchExt": lambda _, v: BatchExt(v),
    "ContextPool": lambda _, v: ContextPool([v]),
    "ContextPool, no list": lambda _, v: ContextPool(v),
    "Engine": lambda _, v: moebind.Engine(v),
    "Engine, params": lambda c, v: moebind.Engine(c.model, v),
    "new_context": lambda c, v: c.model.new_context({"n_ctx": v}),  # type: ignore[arg-type]
    "n_ctx": lambda _, v: ContextParams(n_ctx=v),
    "eval_callback": lambda _, v: ContextParams(eval_callback=v),
    "devices": lambda _, v: ModelParams(devices=v),
    "split_mode": lambda _, v: ModelParams(split_mode=v),
    "unknown": lambda _, v: ModelParams(**{str(v)[:100_000]: v}),
    "from_dict": lambda _, v: ModelParams.from_dict({str(v)[:100_000]: v}),
    "with_cpu_override": lambda _, v: ModelParams().with_cpu_override(v),
    "with_kv_override": lambda _, v: ModelParams().with_kv_override(str(v), v),
    "load_from_file": lambda _, v: Model.load_from_file(v),
    "Gguf": lambda _, v: moebind.Gguf.from_file(v),
    "plan": lambda _, v: moebind.plan(v),
    "plan, devices": lambda c, v: moebind.plan(c.model.path, devices=[v]),
    "fit": lambda c, v: moebind.fit(c.model.path, devices=v),
    "fit, memory": lambda c, v: moebind.fit(c.model.path, memory={str(v): v}),
    "fit, goal": lambda c, v: moebind.fit(c.model.path, goal=v),
    "quantize": lambda c, v: moebind.quantize(c.model.path, "/nowhere/a.gguf", v),
    "Server": lambda _, v: Server(v),
    "Server, host": lambda c, v: Server(c.model.path, host=v),
    "set_log": lambda _, v: moebind.set_log(v),
    "agenerate": lambda c, v: asyncio.run(_completed(c, v)),
}


async def _completed(context: Context, prompt: Any) -> object:
    return await context.agenerate(prompt, max_tokens=1).complete()


#: A text of any length may be a stop.
CASES = [(call, kind) for call in CALLS for kind in VALUES if (call, kind) != ("stop", "str")]


@pytest.mark.parametrize(("call", "kind"), CASES)
def test_no_message_holds_a_large_value(worked: Context, call: str, kind: str) -> None:
    with pytest.raises((TypeError, ValueError, OSError, moebind.MoebindError)) as caught:
        CALLS[call](worked, VALUES[kind])
    assert 0 < len(str(caught.value)) <= MESSAGE_MAX
