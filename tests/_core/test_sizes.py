"""Sizes in bytes, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebind._core.sizes import parse_size, show_size


@given(st.integers(0, 2**50), st.sampled_from(["B", "kB", "MB", "GB", "KiB", "MiB", "GiB", "k", "M", "G", ""]))
@settings(max_examples=60, deadline=None)
def test_sizes_as_text(number: int, unit: str) -> None:
    units = {"B": 1, "": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    units |= {"k": 2**10, "M": 2**20, "G": 2**30}  # as llama.cpp and docker read them
    wanted = number * units[unit]
    if wanted <= 2**62:
        assert parse_size("size", f" {number} {unit}") == wanted
        assert parse_size("size", wanted) == wanted
    else:
        with pytest.raises(ValueError, match="size"):
            parse_size("size", f"{number}{unit}")


def test_sizes_are_shown() -> None:
    assert show_size(2**30) == "1.00 GiB"
    assert show_size(3 * 2**19) == "1.5 MiB"
