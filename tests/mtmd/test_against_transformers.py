"""Embeddings against transformers: tiny random projectors, whose references are in ``data/``.

``make_projectors.py`` makes both, the files with llama.cpp's own converter.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import bounds
from compared import COMPARISONS, DATA, DIFFERING, Comparison, measured

PAGE = Path(__file__).resolve().parents[2] / "docs" / "images.md"


@pytest.mark.parametrize("each", COMPARISONS, ids=str)
def test_embeddings_are_those_of_the_reference(each: Comparison) -> None:
    computed, expected = each.computed(), each.expected()
    assert computed.shape == expected.shape
    assert 0.5 < expected.std() < 1.5  # what the bounds are for
    np.testing.assert_allclose(computed, expected, rtol=0, atol=each.bound)


@pytest.mark.parametrize("each", DIFFERING, ids=str)
def test_where_llama_cpp_differs(each: Comparison) -> None:
    # When this fails they have come nearer to each other: docs/images.md is to say so.
    assert measured(each)[1] > 0.1


def test_a_wrong_projector_would_be_noticed() -> None:
    """Embeddings of other tokens differ by hundreds of times what is allowed."""
    for each in COMPARISONS:
        expected = each.expected()
        assert np.abs(np.roll(expected, 1, axis=0) - expected).max() > 100 * each.bound


def test_the_approximation_of_gelu_is_as_near_as_the_bound_has_it() -> None:
    x = np.linspace(-6, 6, 10_001)
    exact = x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    approximate = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert 0.9 * bounds.TANH < 5 * np.abs(exact - approximate).max() < bounds.TANH


def test_the_documentation_has_the_figures_that_are_measured() -> None:
    row = r"^\| (\S+) \| `(\w+)` \| (\d+) \| (\S+) \| (\S+) \| (\S*) \|$"
    told = {tuple(each[:2]): each[2:] for each in re.findall(row, PAGE.read_text(encoding="utf-8"), re.M)}
    assert set(told) == {(each.name, each.reference) for each in (*COMPARISONS, *DIFFERING)}
    for each in (*COMPARISONS, *DIFFERING):
        tokens, largest, relative, allowed = told[each.name, each.reference]
        found = measured(each)
        assert int(tokens) == found[0]
        # Within a factor of four; which way a last bit rounds is another processor's.
        for said, is_now in zip((largest, relative), found[1:], strict=True):
            assert float(said) / 4 <= is_now <= float(said) * 4, each
        assert allowed == ("-" if each in DIFFERING else f"{each.bound:.0e}")


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 2_500_000
