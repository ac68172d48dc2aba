"""Prompts of every form, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from chats import HELLO

from moebind import Context


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
