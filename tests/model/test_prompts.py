"""Prompts of every form, as tokens."""

from __future__ import annotations

from typing import Any

import pytest

from moebind import Context


@pytest.mark.parametrize("prompt", [None, 5, 0.5, b"text", {"role": "user"}])
def test_prompts_that_are_none(context: Context, prompt: Any) -> None:
    with pytest.raises(TypeError, match="takes text, token ids, or a list of chat messages"):
        context.generate(prompt)
