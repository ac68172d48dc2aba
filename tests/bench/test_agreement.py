"""How far logits agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebind.bench.agreement import agreement, read_captured, write_captured
from moebind.bench.measure import FLOOR, Captured


def captured(logits: np.ndarray, greedy: np.ndarray | None = None) -> Captured:
    """As a placement keeps them."""
    rows = np.maximum(logits - logits.max(axis=1, keepdims=True), FLOOR).astype(np.float16)
    chosen = np.zeros((1, 4), np.int32) if greedy is None else greedy.astype(np.int32)
    return Captured(rows, logits.argmax(axis=1).astype(np.int32), chosen)


@given(st.integers(0, 999), st.floats(1e-3, 2.0), st.integers(2, 300), st.floats(0, 30))
def test_divergence(seed: int, noise: float, n_vocab: int, offset: float) -> None:
    random = np.random.default_rng(seed)
    first = (4 * random.standard_normal((20, n_vocab)) + offset).astype(np.float32)
    other = first + (noise * random.standard_normal(first.shape)).astype(np.float32)
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (first, other))
    expected = (p * np.log(p / q)).sum(1)
    found = agreement(captured(first), captured(other))
    # float16 costs less than what matters.
    assert found.mean_kl == pytest.approx(expected.mean(), rel=0.02, abs=2e-5)
    assert found.max_kl == pytest.approx(expected.max(), rel=0.03, abs=1e-4)
    assert found.same_top == (first.argmax(1) == other.argmax(1)).mean()
    assert found.n_positions == 20
    same = agreement(captured(first), captured(first))
    assert (same.mean_kl, same.max_kl, same.same_top) == (0.0, 0.0, 1.0)


def test_continuations_count_up_to_the_first_difference() -> None:
    logits = np.zeros((1, 2), np.float32)
    first = np.array([[1, 2, 3, 4], [1, 2, 3, 4]])
    other = np.array([[1, 2, 3, 4], [1, 9, 3, 4]])
    found = agreement(captured(logits, first), captured(logits, other))
    assert (found.same_greedy, found.same_continuations, found.n_prompts) == (5 / 8, 1, 2)


def test_tokens_that_cannot_come() -> None:
    logits = np.array([[0.0, -np.inf, 3.0]], np.float32)
    assert agreement(captured(logits), captured(logits)).mean_kl == 0.0


def test_files(tmp_path: Path) -> None:
    logits = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    path = tmp_path / "x.npz"
    write_captured(str(path), captured(logits))
    found = read_captured(str(path))
    assert found is not None
    assert (found.logits == captured(logits).logits).all()
    whole = path.read_bytes()
    for damaged in (b"", b"PK", whole[: len(whole) // 2], b"\x80\x04N."):
        path.write_bytes(damaged)
        assert read_captured(str(path)) is None
    assert read_captured(str(tmp_path / "none")) is None
    np.savez(path, logits=logits)
    assert read_captured(str(path)) is None
    with pytest.raises(ValueError, match="same prompts"):
        agreement(captured(logits), captured(logits[:2]))
