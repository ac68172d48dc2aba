"""Patterns for names of tensors: what they match, and those that would never end."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebind import ModelParams
from moebind._core.native import decoded, lib
from moebind.files.tensor_patterns import (
    VALUE_EXPERTS,
    check_pattern,
    experts_pattern,
    matching,
    numbers,
    similar_names,
)


@pytest.mark.parametrize(
    "pattern",
    [
        "(", "[a", "a{2,1}", "*", "(?<=a)b", "(?i)a", "", "x" * 1001, "(" * 300,
        "(a*)*b", "(a|b)*c", "(.*)*(.*)*x$", "((a+)b)+", "(a{1,3}){2,}", ".*.*.*.*.*x", "a\0b",
        "a?.++3", "a++", "a?+", "a*{2}", "a+?+", "a???", "(a?a?)+b",
        "a?" * 20 + "b", "(a|a)" * 20 + "b", "a{0,9}" * 9 + "b",
    ],
)  # fmt: skip
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        ModelParams().with_cpu_override(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"blk\.[0-3]\.ffn_down",
        r"blk\.(1|2|3)\..*_exps",
        r"^output\.weight$",
        r"[*+]+",
        r"\(a\)*",
        "(ab)+",
        r"a{2,3}",
        r"a{3}b",
        "a+?b",
        "a??",
        "(?:a*)b(?:a*)c(?:a*)d(?:a*)e",
        r"ffn_(up|down)?_exps",
        rf"blk\.(\d|1\d|20){experts_pattern()}",
        rf"blk\.({'|'.join(map(str, range(60)))})\..*_(ch|)exps",
        "é",
    ],
)
def test_patterns_that_are_taken(pattern: str) -> None:
    assert ModelParams().with_cpu_override(pattern).tensor_overrides[0].pattern == pattern


def test_experts_are_what_llama_cpp_chooses_among_by_number() -> None:
    source = (Path(__file__).resolve().parents[2] / "vendor/llama.cpp/src/llama-arch.cpp").read_text(encoding="utf-8")
    names = dict(re.findall(r'\{ (LLM_TENSOR_\w+), +"([^"]+)" \}', source))
    operations = dict(re.findall(r"\{(LLM_TENSOR_\w+), +\{LLM_TENSOR_LAYER_\w+, +(GGML_OP_\w+)\}\}", source))
    assert len(names) > 250
    whole = [name.replace("%d", "7") + ".weight" for name in names.values()]
    chosen = {names[key].replace("%d", "7") + ".weight" for key, op in operations.items() if op == "GGML_OP_MUL_MAT_ID"}
    assert {*matching(experts_pattern(), whole)} == chosen
    assert {*matching(decoded(lib.moebind_ffn_exps_regex()), whole)} == chosen - {f"blk.7.{VALUE_EXPERTS}.weight"}


@given(st.text(alphabet="ab.*+?(){}[]|\\^$0123,-", max_size=30))
def test_any_pattern_is_refused_or_quick(pattern: str) -> None:
    try:
        ModelParams().with_cpu_override(pattern)
    except ValueError:
        return
    matching(pattern, ["".join(chosen) for chosen in itertools.product("ab.", repeat=4)] + ["a" * 40 + "c", "ab" * 20])


def test_regular_expressions_over_long_names() -> None:
    """``std::regex`` recurses over what a repetition matches."""
    code = """
from moebind import ffi, lib
names = [ffi.new("char[]", b"a" * 10**6 + end) for end in (b"b", b"c")]
matches = ffi.new("bool[]", 2)
assert lib.moebind_regex_search(b"^a*b$", names, 2, matches) == 1
assert list(matches) == [True, False]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]


NAMES = [f"blk.{layer}.{part}.weight" for layer in range(3) for part in ("attn_q", "ffn_up_exps", "ffn_down")]


@pytest.mark.parametrize("pattern", ["ffn", r"blk\.1\.", "^output", "weight$", r"blk\.[02]\..*_exps", "ü"])
def test_patterns_are_searched_in_names(pattern: str) -> None:
    assert matching(pattern, NAMES) == [name for name in NAMES if re.search(pattern, name)]
    assert matching(pattern, []) == []


def test_names_that_are_shown_are_one_of_each_kind() -> None:
    assert sorted(similar_names("nothing", NAMES)) == sorted(NAMES[:3])
    assert similar_names(r"blk\.7\.ffn_up_exp\.", NAMES)[0] == "blk.0.ffn_up_exps.weight"
    assert similar_names("ffn", NAMES, most=2) == similar_names("ffn", NAMES)[:2]
    assert similar_names("ffn", []) == []


@pytest.mark.parametrize("pattern", [None, 3, b"a", ["a"]])
def test_what_is_no_pattern(pattern: object) -> None:
    with pytest.raises(TypeError, match="pattern"):
        check_pattern(pattern)  # type: ignore[arg-type]


@given(st.integers(0, 2500), st.integers(0, 900))
def test_numbers_match_exactly_them(first: int, more: int) -> None:
    pattern = re.compile(f"({numbers(first, first + more)})")
    assert [n for n in range(first + more + 1200) if pattern.fullmatch(str(n))] == [*range(first, first + more + 1)]


@pytest.mark.parametrize(
    ("first", "last", "pattern"),
    [
        (0, 0, "0"),
        (0, 4, "[0-4]"),
        (0, 9, r"\d"),
        (0, 10, r"\d|10"),
        (0, 14, r"\d|1[0-4]"),
        (0, 19, r"\d|1\d"),
        (0, 39, r"\d|[1-3]\d"),
        (0, 21, r"\d|1\d|2[01]"),
        (0, 47, r"\d|[1-3]\d|4[0-7]"),
        (0, 99, r"\d|[1-9]\d"),
        (12, 31, r"1[2-9]|2\d|3[01]"),
        (7, 7, "7"),
        (95, 104, "9[5-9]|10[0-4]"),
    ],
)
def test_patterns_of_numbers_read_well(first: int, last: int, pattern: str) -> None:
    assert numbers(first, last) == pattern
