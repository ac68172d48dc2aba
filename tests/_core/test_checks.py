"""Checks of arguments: what comes out, and what is said of what is wrong."""

from __future__ import annotations

import json
import re
from enum import IntEnum
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebind import FlashAttnType, Ftype, GgmlType, PoolingType, SplitMode
from moebind._core import checks

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(INT64, INT64, INT64)
def test_integers_are_within_their_bounds(value: int, low: int, high: int) -> None:
    for given_value in (value, np.int64(value)):
        if low <= value <= high:
            taken = checks.integer("n", given_value, low, high)
            assert (taken, type(taken)) == (value, int)
        else:
            with pytest.raises(ValueError, match=rf"^n is {value}; it takes {low} to {high}$"):
                checks.integer("n", given_value, low, high)


@pytest.mark.parametrize("value", [True, np.bool_(False), 1.0, "1", None, [1], np.array([1, 2])])
def test_what_is_no_integer(value: object) -> None:
    with pytest.raises(TypeError, match=r"^n is .*; it takes an integer$"):
        checks.integer("n", value, 0)  # type: ignore[arg-type]


@given(st.floats() | st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_numbers_are_finite_and_within_their_bounds(value: float, low: float, high: float) -> None:
    if np.isfinite(value) and low <= value <= high:
        taken = checks.number("x", value, low, high)
        assert (taken, type(taken)) == (float(value), float)
    else:
        with pytest.raises(ValueError, match=r"^x is .*; it takes (a finite number|-?[\d.e+inf-]+ (to|or more))"):
            checks.number("x", value, low, high)


def test_numbers_of_other_types() -> None:
    assert checks.number("x", np.float32(0.5)) == 0.5
    with pytest.raises(ValueError, match="it takes 1 or more$"):
        checks.number("x", 0, 1)
    for value in (True, np.bool_(True), "1", b"1", None, [1.0], 1j):
        with pytest.raises(TypeError, match=r"^x is .*; it takes a number$"):
            checks.number("x", value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^x is too large for a float; it takes a finite number$"):
        checks.number("x", 10**400)


def test_truth_is_no_matter_of_opinion() -> None:
    for value in (True, False, np.bool_(True), np.bool_(False)):
        taken = checks.boolean("yes", value)  # type: ignore[arg-type]
        assert taken is bool(value)
    for wrong in (1, 0, "yes", None, [], np.array([True])):
        with pytest.raises(TypeError, match=r"^yes is .*; it takes True or False$"):
            checks.boolean("yes", wrong)  # type: ignore[arg-type]


class Colour(IntEnum):
    RED = 1
    BLUE = 2


def test_members_and_their_numbers() -> None:
    for value in (Colour.BLUE, 2, np.int8(2)):
        assert checks.member("c", value, Colour) is Colour.BLUE  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"^c is <Colour.BLUE: 2>; it takes one of Colour: RED$"):
        checks.member("c", Colour.BLUE, Colour, [Colour.RED])
    # A number that only a newer llama.cpp knows is a member, and not one that is taken.
    with pytest.raises(ValueError, match=r"^c is 999; it takes one of GgmlType: F32, "):
        checks.member("c", 999, GgmlType)


@pytest.mark.parametrize("value", [True, 1.0, None, PoolingType.MEAN, [1]])
def test_what_is_no_member(value: object) -> None:
    with pytest.raises(TypeError, match="it takes a member of Colour: RED, BLUE$"):
        checks.member("c", value, Colour)  # type: ignore[type-var]


def test_a_members_name_as_text_is_a_hint() -> None:
    with pytest.raises(TypeError, match=r"^c is 'RED'; it takes a member of Colour: Colour\.RED$"):
        checks.member("c", "RED", Colour)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"it takes a member of Colour: RED, BLUE$"):
        checks.member("c", "GREEN", Colour)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"it takes a member of GgmlType$"):
        checks.member("c", "GREEN", GgmlType)


@pytest.mark.parametrize(
    ("value", "kind", "allowed", "meant"),
    [
        ("q8_0", GgmlType, None, "GgmlType.Q8_0"),
        ("layer", SplitMode, None, "SplitMode.LAYER"),
        (Ftype.Q8_0, GgmlType, None, "GgmlType.Q8_0"),
        (Ftype.Q4_K_M, GgmlType, None, "GgmlType.Q4_K"),
        (GgmlType.Q8_0, Ftype, None, "Ftype.Q8_0"),
        (GgmlType.Q4_K, Ftype, None, "Ftype.Q4_K_S or Ftype.Q4_K_M"),
        ("q4-k-m", Ftype, None, "Ftype.Q4_K_M"),
        ("on", FlashAttnType, None, "AUTO, DISABLED, ENABLED"),
        (Ftype.Q4_K_M, GgmlType, [GgmlType.F16, GgmlType.Q8_0], "F16, Q8_0"),
    ],
)
def test_members_of_another_enumeration(value: Any, kind: Any, allowed: Any, meant: str) -> None:
    with pytest.raises(TypeError, match=f"it takes a member of {kind.__name__}: {re.escape(meant)}$"):
        checks.member("c", value, kind, allowed)


@given(st.text(st.characters()))
def test_texts_are_utf8_or_refused(text: str) -> None:
    try:
        expected = text.encode()
    except UnicodeEncodeError as error:
        with pytest.raises(ValueError, match=rf"lone surrogate .* at {error.start}, "):
            checks.utf8("t", text)
        return
    assert checks.utf8("t", text) == expected
    if "\0" in text:
        with pytest.raises(ValueError, match=rf"NUL character at {text.index(chr(0))},"):
            checks.text("t", text)
    else:
        assert checks.text("t", text) == expected


@pytest.mark.parametrize("value", [None, b"a", 3, ["a"], Path("a")])
def test_what_is_no_text(value: object) -> None:
    for check in (checks.text, checks.utf8):
        with pytest.raises(TypeError, match=r"^t is .*; it takes a str$"):
            check("t", value)  # type: ignore[arg-type]


@given(st.recursive(st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("a"), inner)))
def test_nesting_is_that_of_the_value(value: object) -> None:
    def depth(inside: object) -> int:
        if isinstance(inside, dict):
            return 1 + max(map(depth, inside.values()), default=0)
        return 1 + max(map(depth, inside), default=0) if isinstance(inside, list) else 0

    assert checks.nesting(json.dumps(value)) == depth(value)


def test_nesting_of_what_is_no_json() -> None:
    assert checks.nesting("}}]]") == 0
    assert checks.nesting("]" * 5 + "[" * 3) == 3


class Broken:
    def __fspath__(self) -> bytes:
        return b"a"


def test_paths() -> None:
    for value in ("a/b", PurePosixPath("a/b")):
        assert checks.path("p", value) == "a/b"
    for wrong, kind, message in (
        ("", ValueError, "p is empty"),
        ("a\0b", ValueError, "p contains a NUL"),
        (b"a", TypeError, "p is b'a'"),
        (3, TypeError, "p is 3"),
        (None, TypeError, "p is None"),
        (Broken(), TypeError, "p is a path of bytes"),
    ):
        with pytest.raises(kind, match=message):
            checks.path("p", wrong)  # type: ignore[arg-type]


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/her")
    monkeypatch.chdir(tmp_path)
    assert checks.path("p", "~/a~/b") == checks.path("p", Path("~/a~/b")) == "/home/her/a~/b"
    assert checks.path("p", "~") == "/home/her"
    assert checks.path("p", "a/~") == "a/~"
    assert checks.path("p", "~nobody-of-this-name/a") == "~nobody-of-this-name/a"
    (tmp_path / "~").mkdir()
    assert checks.path("p", "~/a") == "~/a"  # somebody meant this folder


def test_addresses_on_the_hub() -> None:
    assert checks.on_hub("hf://a/b")
    assert checks.on_hub(str(Path("hf://a/b")))
    assert not checks.on_hub("hf/a/b")


def test_a_folder_that_is_named_as_addresses_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    local = Path("./hf:/owner/model.gguf")
    local.parent.mkdir(parents=True)
    assert checks.on_hub(str(local))
    local.touch()
    assert not checks.on_hub(str(local))
    assert checks.absolute(str(local)) == str(tmp_path / local)
    assert checks.on_hub("hf://owner/model.gguf")


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_arrays_of_any_width(dtype: type) -> None:
    given_array = np.arange(10, dtype=dtype)[::3]
    taken = checks.int32_array("a", given_array, 0)
    assert taken.dtype == np.int32
    assert taken.flags.c_contiguous
    assert taken.tolist() == [0, 3, 6, 9]
    assert checks.int32_array("a", [], 0).dtype == np.int32


@given(st.lists(INT64, min_size=1, max_size=8))
def test_the_first_number_outside_is_named(values: list[int]) -> None:
    outside = [at for at, value in enumerate(values) if not -5 <= value <= 2**31 - 1]
    if not outside:
        assert checks.int32_array("a", values, -5).tolist() == values
        return
    message = f"a[{outside[0]}] is {values[outside[0]]}; it takes -5 to 2147483647"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checks.int32_array("a", values, -5)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("12", TypeError, "a is a str"),
        (b"12", TypeError, "a is a bytes"),
        (3, TypeError, r"a is 3 \(int\); it takes a sequence or array of integers"),
        (None, TypeError, r"a is None \(NoneType\); it takes"),
        ([[1, 2]], ValueError, "a has 2 dimensions"),
        ([[1], [2, 3]], ValueError, "a cannot be made into an array"),
        ([1.0], TypeError, "a has dtype float64"),
        ([True], TypeError, "a has dtype bool"),
        ([None], TypeError, "a has dtype object"),
        ([2**70], TypeError, "a has dtype object"),
    ],
)
def test_what_is_no_array_of_integers(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        checks.int32_array("a", value, 0)


def test_octets_are_not_copied_unless_they_are_apart() -> None:
    data = bytearray(b"abcdef")
    view = checks.octets("data", data)
    data[0] = ord("x")
    assert view.tobytes() == b"xbcdef"
    assert checks.octets("data", memoryview(data)[::2]).tobytes() == b"xce"
    assert checks.octets("data", np.array([[1, 2], [3, 4]], np.int8)).tobytes() == b"\1\2\3\4"
    assert checks.octets("data", b"").nbytes == 0
    for wrong in ("text", 3, None, [1], np.zeros(2, np.int32), np.zeros(2, bool)):
        with pytest.raises(TypeError, match=r"^data .*; it takes bytes$"):
            checks.octets("data", wrong)  # type: ignore[arg-type]
