"""Numbers of tokens: with a k, they are what llama.cpp's users mean."""

from __future__ import annotations

import pytest

from moebind.cli.token_counts import token_count


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("4096", 4096),
        ("0", 0),
        ("32k", 32768),
        ("32K", 32768),
        ("128k", 131072),
        ("1m", 2**20),
        ("1M", 2**20),
        (" 8k", 8192),
    ],
)
def test_what_is_meant(given: str, count: int) -> None:
    assert token_count("--ctx-size", given) == count


@pytest.mark.parametrize("given", ["", "k", "32kb", "32 KiB", "-1", "1.5k", "3e4", "32kk", "four", "٣", "9" * 19])
def test_what_is_told(given: str) -> None:
    with pytest.raises(ValueError, match="--ctx-size is .*such as 32768, or 32k, which is the same"):
        token_count("--ctx-size", given)
