"""What is to be fast: the work that is measured, and how much each part of it counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from moebind._core import checks
from moebind._core.shown import shown

__all__ = ["GOALS", "PARTS", "Goal", "checked_goal"]

#: Parts of the work: a prompt, tokens one at a time, and tokens of several sequences side by side.
PARTS = ("prompt", "decode", "batch")


@dataclass(frozen=True)
class Goal:
    """The work, and the weights of its parts.

    Attributes
    ----------
    name : str
        ``"chat"``, ``"long-prompt"``, ``"batch"``, or ``"weights"`` for weights of one's own.
    weights : Mapping[str, float]
        For each part how much it counts; they add up to 1.
    n_prompt, n_generate : int
        Tokens of a prompt, and tokens after it.
    n_sequences : int
        Sequences side by side; 1 where none are.
    """

    name: str
    weights: Mapping[str, float]
    n_prompt: int
    n_generate: int
    n_sequences: int = 1

    def cost(self, speeds: Mapping[str, float]) -> float:
        """The logarithm of the seconds a token takes: of each part, times its weight.

        Who makes a part 10 % faster that counts half gains what half as much of all parts would.
        """
        return -sum(weight * math.log(speeds[part]) for part, weight in self.weights.items() if weight)

    @property
    def n_tokens(self) -> int:
        """Tokens that a sequence needs room for."""
        return self.n_prompt + self.n_generate


GOALS = {
    "chat": Goal("chat", {"prompt": 0.25, "decode": 0.75}, 256, 64),
    "long-prompt": Goal("long-prompt", {"prompt": 0.75, "decode": 0.25}, 2048, 32),
    "batch": Goal("batch", {"prompt": 0.25, "batch": 0.75}, 128, 32, 8),
}


def checked_goal(
    goal: str | Mapping[str, float],
    n_prompt: object = None,
    n_generate: object = None,
    n_sequences: object = None,
) -> Goal:
    """A goal by its name, or of weights, with other counts where they are given.

    Raises
    ------
    ValueError, TypeError
        If it is none.
    """
    found = _of_weights(goal) if isinstance(goal, Mapping) else GOALS.get(goal) if isinstance(goal, str) else None
    if found is None:
        kind = ValueError if isinstance(goal, str) else TypeError
        raise kind(
            f"goal is {shown(goal)}; it takes {', '.join(map(repr, GOALS))}, or weights such as "
            "{'decode': 0.5, 'prompt': 0.5}"
        )

    def count(name: str, given: object, low: int, usual: int) -> int:
        return usual if given is None else checks.integer(name, given, low)  # type: ignore[arg-type]

    several = count("n_sequences", n_sequences, 2, found.n_sequences) if found.weights.get("batch") else 1
    if n_sequences is not None and several == 1:
        raise ValueError("n_sequences is given, and nothing of several sequences counts: goal='batch' has that")
    return Goal(
        found.name,
        found.weights,
        count("n_prompt", n_prompt, 1, found.n_prompt),
        count("n_generate", n_generate, 1, found.n_generate),
        several,
    )


def _of_weights(given: Mapping[str, float]) -> Goal:
    unknown = [name for name in given if name not in PARTS]
    if unknown:
        raise ValueError(f"goal has {shown(unknown[0])}; it takes weights of {', '.join(PARTS)}")
    weights = {name: checks.number(f"goal[{name!r}]", value, 0.0) for name, value in given.items()}
    total = sum(weights.values())
    if not total:
        raise ValueError("goal has no weight above 0")
    if weights.get("decode") and weights.get("batch"):
        raise ValueError("goal weighs decode and batch: single tokens are of one sequence, or of several; choose one")
    shares = {name: value / total for name, value in weights.items() if value}
    return Goal("weights", shares, 512, 64, 8 if "batch" in shares else 1)
