"""How far two placements agree: what they make of the same prompts."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.atomic_files import write_whole
from moebind.bench.measure import Captured

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Agreement", "agreement", "read_captured", "write_captured"]

#: Rows that are compared at once: of a large vocabulary, some MiB.
_ROWS = 16


@dataclass(frozen=True)
class Agreement:
    """How a placement's logits agree with those of the first one, on the same prompts.

    Attributes
    ----------
    mean_kl, max_kl : float
        Kullback-Leibler divergence, in nats: of the first placement's probabilities from this one's, over all
        positions; 0 where they are equal.
    same_top : float
        The share of positions at which the likeliest token is the same one.
    n_positions : int
        Positions that were compared.
    same_greedy : float
        The share of greedily continued tokens before the first that differs.
    same_continuations, n_prompts : int
        Continuations that are equal to the end, of how many.
    """

    mean_kl: float
    max_kl: float
    same_top: float
    n_positions: int
    same_greedy: float
    same_continuations: int
    n_prompts: int


def write_captured(path: str, captured: Captured) -> None:
    """Write an ``.npz`` file, whole or not at all."""
    data = io.BytesIO()
    np.savez(data, logits=captured.logits, top=captured.top, greedy=captured.greedy)
    write_whole(path, [data.getbuffer()])


def read_captured(path: str) -> Captured | None:
    """Read what was captured; None if there is no such file, or something else in it."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = Captured(file["logits"], file["top"], file["greedy"])
    except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = found.logits.ndim == 2 and found.top.shape == found.logits.shape[:1] and found.greedy.ndim == 2
    return found if whole and found.top.size else None


def agreement(first: Captured, other: Captured) -> Agreement:
    """Compare.

    Raises
    ------
    ValueError
        If they are not of the same prompts and vocabulary.
    """
    if first.logits.shape != other.logits.shape or first.greedy.shape != other.greedy.shape:
        raise ValueError("the logits are not of the same prompts and vocabulary")
    divergences: list[NDArray[np.float64]] = []
    for start in range(0, first.top.size, _ROWS):
        ours, theirs = (_log_probabilities(each.logits[start : start + _ROWS]) for each in (first, other))
        divergences.append((np.exp(ours) * (ours - theirs)).sum(axis=1))
    kl = np.maximum(np.concatenate(divergences), 0.0)
    equal = np.logical_and.accumulate(first.greedy == other.greedy, axis=1)
    return Agreement(
        float(kl.mean()),
        float(kl.max()),
        float((first.top == other.top).mean()),
        int(kl.size),
        float(equal.mean()),
        int(equal[:, -1].sum()),
        int(equal.shape[0]),
    )


def _log_probabilities(logits: NDArray[np.float16]) -> NDArray[np.float64]:
    rows = logits.astype(np.float64)
    normalised: NDArray[np.float64] = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return normalised
