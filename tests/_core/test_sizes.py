"""Sizes in bytes, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moebind._core.sizes import parse_memory, parse_size, show_size


@given(st.integers(0, 2**50), st.sampled_from(["B", "kB", "MB", "GB", "KiB", "MiB", "GiB", "k", "M", "G", ""]))
@settings(max_examples=60, deadline=None)
def test_sizes_as_text(number: int, unit: str) -> None:
    units = {"B": 1, "": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    units |= {"k": 2**10, "M": 2**20, "G": 2**30}  # as llama.cpp and docker read them
    wanted = number * units[unit]
    if not unit and 0 < number < 2**20:
        with pytest.raises(
            ValueError,
            match=f"^size is '.*{number}.*which is so many bytes: .*'{number}{'GiB' if number < 1024 else 'MiB'}'$",
        ):
            parse_size("size", f" {number} ")
        assert parse_size("size", number) == number
    elif wanted <= 2**62:
        assert parse_size("size", f" {number} {unit}") == wanted
        assert parse_size("size", wanted) == wanted
    else:
        with pytest.raises(ValueError, match="size"):
            parse_size("size", f"{number}{unit}")


def test_sizes_are_shown() -> None:
    assert show_size(2**30) == "1.00 GiB"
    assert show_size(3 * 2**19) == "1.5 MiB"


@pytest.mark.parametrize(
    ("text", "size"),
    [("1.5GiB", 3 * 2**29), ("24g", 24 * 2**30), (" 512 mb ", 512 * 10**6), ("1048576", 2**20), ("0", 0)],
)
def test_sizes_with_fractions_and_blanks(text: str, size: int) -> None:
    assert parse_size("size", text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1 GiBs", "1e9", "1,5GiB", "nan", "\u0663GiB", "9" * 19, "1\0"])
def test_texts_that_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"^size is .*; it takes a number of bytes, or a text such as '24GiB'"):
        parse_size("size", text)


def test_sizes_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"^size is 0; it takes 1 to"):
        parse_size("size", "0GiB", low=1)
    for wrong in (-1, 2**62 + 1):
        with pytest.raises(ValueError, match="size is"):
            parse_size("size", wrong)
    for kind in (None, 1.5, b"1GiB", True):
        with pytest.raises(TypeError, match="size is"):
            parse_size("size", kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "meant"), [(12, "12GiB"), (1, "1GiB"), (24576, "24576MiB"), ("64", "64GiB"), ("2048", "2048MiB")]
)
def test_memory_without_a_unit(value: int | str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"memory is {value!r}, which is so many bytes: give a unit, as in '{meant}'"):
        parse_memory("memory", value)


def test_memory_in_bytes() -> None:
    given = {0: 0, 2**16: 2**16, 2**40: 2**40, "1KiB": 1024, "100B": 100}
    assert {value: parse_memory("memory", value) for value in given} == given
    with pytest.raises(TypeError, match="memory is 1.5"):
        parse_memory("memory", 1.5)  # type: ignore[arg-type]
