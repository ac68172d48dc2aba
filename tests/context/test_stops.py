"""What ends a text: strings, control tokens, ids of tokens; and which one it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from moebind import Context, ContextParams, Model, Piece, Sampler

PROMPT = "<|im_start|>user\nHello"


@pytest.fixture(scope="module")
def context(demo: Model) -> Iterator[Context]:
    with demo.new_context(ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1, n_seq_max=2)) as context:
        yield context


def written(context: Context, text: str, stop: Any, shown: str | None = None) -> list[Piece]:
    """What comes of a model that writes this text."""
    tokens = [*context.model.str_to_token(text, add_special=False).tolist(), context.model.token_eos]
    script = iter(tokens)
    with Sampler.from_callable(lambda candidates: candidates.select(next(script))) as sampler:
        return list(context.generate(PROMPT, sampler=sampler, stop=stop, max_tokens=40))


@pytest.mark.parametrize(
    ("stop", "shown", "came"),
    [
        (["<|im_start|>"], "Hi there", "<|im_start|>"),
        ("<|im_start|>", "Hi there", "<|im_start|>"),
        (["\n\n", "<|im_start|>"], "Hi there", "<|im_start|>"),
        (["there", "<|im_start|>"], "Hi ", "there"),
        (["<|im_start|>", "Hi"], "", "Hi"),
        (["user"], "Hi there", "user"),
        ([" there", "there"], "Hi", " there"),
        (["more"], "Hi thereuser\n", "more"),
    ],
)
def test_the_stop_that_comes_first_ends_the_text(context: Context, stop: Any, shown: str, came: str) -> None:
    pieces = written(context, "Hi there<|im_start|>user\nmore", stop)
    assert "".join(piece.text for piece in pieces) == shown
    assert (pieces[-1].stop_reason, pieces[-1].stop) == ("stop", came)
    assert all(piece.stop is None for piece in pieces[:-1])


def test_tokens_end_a_text(context: Context) -> None:
    model = context.model
    start, newline = (int(model.str_to_token(text, add_special=False)[0]) for text in ("<|im_start|>", "\n"))
    stops: list[Sequence[Any] | int] = [[start], start, np.int32(start), np.array([start]), [newline, start, "zzz"]]  # type: ignore[list-item]
    for stop in stops:
        pieces = written(context, "Hi<|im_start|>user\nmore", stop)
        assert "".join(piece.text for piece in pieces) == "Hi"
        assert (pieces[-1].stop_reason, pieces[-1].stop) == ("stop", start)
    pieces = written(context, "Hi<|im_start|>user\nmore", newline)
    assert "".join(piece.text for piece in pieces) == "Hiuser"
    assert pieces[-1].stop == newline


def test_text_that_was_held_back_comes_before_a_token(context: Context) -> None:
    pieces = written(context, "Hi th<|im_start|>", ["there", "<|im_start|>"])
    assert "".join(piece.text for piece in pieces) == "Hi th"


def test_the_end_of_the_model_is_its_own_reason(context: Context) -> None:
    pieces = written(context, "Hi", ["<|im_end|>"])
    assert (pieces[-1].stop_reason, pieces[-1].stop) == ("eog", None)


def test_many_prompts_end_the_same_way(context: Context) -> None:
    model = context.model
    first = next(iter(context.generate(PROMPT, max_tokens=1))).token
    for stop in ([first], first):
        pieces = [piece for _, piece in context.generate_many([PROMPT, PROMPT], stop=stop, max_tokens=4)]
        assert [(piece.stop_reason, piece.stop, piece.text) for piece in pieces] == [("stop", first, "")] * 2
    assert model.token_to_str(first)


def test_replies_tell_which_stop_came(context: Context) -> None:
    model = context.model
    first = next(iter(context.chat([{"role": "user", "content": "Hello"}], max_tokens=1))).token
    reply = context.chat([{"role": "user", "content": "Hello"}], stop=[first], max_tokens=4)
    assert reply.stop is None
    assert reply.complete()["content"] == ""
    assert (reply.stop_reason, reply.stop) == ("stop", first)
    assert model.token_to_str(first)


@pytest.mark.parametrize(
    ("stop", "error", "told"),
    [
        (["user\n<|im_start|>"], ValueError, r"can never come: '<\|im_start\|>' in it is a control token"),
        ([-1], ValueError, "a token in stop"),
        ([10**6], ValueError, "a token in stop"),
        ([True], TypeError, "it takes texts, and ids of tokens"),
        ([None], TypeError, "it takes texts, and ids of tokens"),
        ([b"a"], TypeError, "it takes texts, and ids of tokens"),
        ([1.5], TypeError, "it takes texts, and ids of tokens"),
        ([""], ValueError, "empty"),
        (["\ud800"], ValueError, "surrogate"),
    ],
)
def test_stops_that_are_none(context: Context, stop: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        context.generate(PROMPT, stop=stop)
    with pytest.raises(error, match=told):
        context.generate_many([PROMPT], stop=stop)


def test_no_stops_and_no_limit(context: Context) -> None:
    for stop in (None, (), []):
        assert written(context, "Hi", stop)[-1].stop_reason == "eog"
    for limit in (None, -1, np.int64(-1)):
        pieces = list(context.generate("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", max_tokens=limit))
        assert pieces[-1].stop_reason == "eog"
        assert context.chat([{"role": "user", "content": "Hello"}], max_tokens=limit, stop=None).complete()["content"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_tokens": -2}, ValueError, "max_tokens is -2; it takes a number from 0 on, or None or -1"),
        ({"max_tokens": True}, TypeError, "max_tokens is True"),
        ({"max_tokens": "8"}, TypeError, "max_tokens"),
        ({"stop": 3.5}, TypeError, r"stop is 3.5 \(float\); it takes texts, and ids of tokens, or None"),
        ({"stop": b"end"}, TypeError, "stop is b'end'"),
        ({"stop": {"end": 1}}, TypeError, "stop is {'end': 1}"),
        ({"stop": [None]}, TypeError, "stop holds None"),
        ({"stop": True}, TypeError, "stop holds True"),
    ],
)
def test_bad_ones(context: Context, options: dict[str, Any], error: type[Exception], message: str) -> None:
    for call in (
        lambda: context.generate(PROMPT, **options),
        lambda: context.generate_many([PROMPT], **options),
        lambda: context.chat([{"role": "user", "content": "Hello"}], **options),
    ):
        with pytest.raises(error, match=message):
            call()
