"""A context's length, where it is another one than was asked for, or longer than the model knows."""

from __future__ import annotations

import pytest

from moebind.params.context_length import length_notes

ROUNDED = "n_ctx 8 is rounded up to 256: each sequence has a multiple of 256 tokens."
LONG = (
    "A sequence can have 256 tokens, and the model was trained with 128: what it writes beyond them may make no sense."
)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((256, 256, 256, 256), []),
        ((8, 256, 256, 512), [ROUNDED]),
        ((8, 256, 256, 128), [ROUNDED, LONG]),
        ((512, 512, 256, 256), []),
        ((256, 256, 256, 128), [LONG]),
        ((0, 256, 256, 128), []),  # nobody asked
        ((256, 256, 256, 0), []),  # nobody knows
    ],
)
def test_what_is_told(given: tuple[int, int, int, int], told: list[str]) -> None:
    assert length_notes(*given) == told
