"""Prompts of every form, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from chats import HELLO

from moebind import Context, Model


@pytest.mark.parametrize("prompt", [None, 5, 0.5, b"text", {"role": "user"}])
def test_prompts_that_are_none(context: Context, prompt: Any) -> None:
    with pytest.raises(TypeError, match="takes text, token ids, or a list of chat messages"):
        context.generate(prompt)


def test_messages_are_a_prompt(talking: Context) -> None:
    expected = talking.chat(HELLO, max_tokens=6).complete()["content"]
    assert "".join(piece.text for piece in talking.generate(HELLO, max_tokens=6)) == expected
    assert "".join(piece.text for piece in talking.generate(tuple(HELLO), max_tokens=6)) == expected


@pytest.mark.parametrize("prompt", [[*HELLO, 3], [1, *HELLO], [{}]])
def test_prompts_that_are_half_messages(talking: Context, prompt: Sequence[Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"messages\["):
        talking.generate(prompt)


def test_prompts_of_every_form(demo: Model) -> None:
    tokens = demo.str_to_token("Hello")
    for prompt in ("Hello", tokens, tokens.tolist(), tuple(tokens.tolist()), tokens.astype(np.uint16)):
        found = demo._prompt_tokens(prompt)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, tokens)
    np.testing.assert_array_equal(demo._prompt_tokens(HELLO), demo.str_to_token(demo.apply_chat_template(HELLO)))


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([], ValueError, "prompt has no tokens"),
        ("", ValueError, "prompt has no tokens"),
        ([-1], ValueError, r"prompt\[0\] is -1"),
        ([0, 10**6], ValueError, r"prompt\[1\] is 1000000"),
        ([1.5], TypeError, "takes integers"),
        ([[1]], ValueError, "dimensions"),
        ("\ud800", ValueError, "surrogate"),
    ],
)
def test_prompts_without_tokens_or_with_wrong_ones(
    demo: Model, prompt: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        demo._prompt_tokens(prompt)
