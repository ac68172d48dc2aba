"""Goals: what is measured, and how much each part counts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from moebind.tuning.goals import GOALS, PARTS, checked_goal


@pytest.mark.parametrize("name", GOALS)
def test_goals_have_weights_that_add_up(name: str) -> None:
    goal = checked_goal(name)
    assert math.isclose(sum(goal.weights.values()), 1.0)
    assert set(goal.weights) <= set(PARTS)
    assert (goal.n_sequences > 1) == ("batch" in goal.weights)
    # What is weighed is measured: single sequences have no batch, and batches no single tokens.
    assert not {"batch", "decode"} <= set(goal.weights)


def test_the_cost_is_the_logarithm_of_seconds() -> None:
    goal = checked_goal({"prompt": 1, "decode": 3})
    cost = goal.cost({"prompt": 100.0, "decode": 10.0})
    assert math.isclose(cost, -(0.25 * math.log(100) + 0.75 * math.log(10)))
    assert math.isclose(cost - goal.cost({"prompt": 100.0, "decode": 20.0}), 0.75 * math.log(2))


def test_counts_can_be_given() -> None:
    goal = checked_goal("batch", 10, 5, 3)
    assert (goal.n_prompt, goal.n_generate, goal.n_sequences, goal.n_tokens) == (10, 5, 3, 15)


def test_weights_are_shares() -> None:
    assert checked_goal({"prompt": 2, "decode": 6, "batch": 0}).weights == {"prompt": 0.25, "decode": 0.75}


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["fast"], ValueError, "goal is 'fast'; it takes 'chat', 'long-prompt', 'batch', or weights"),
        ([5], TypeError, "goal is 5; it takes"),
        ([None], TypeError, "goal is None"),
        ([{}], ValueError, "no weight above 0"),
        ([{"decode": 0}], ValueError, "no weight above 0"),
        ([{"speed": 1}], ValueError, "goal has 'speed'; it takes weights of prompt, decode, batch"),
        ([{"decode": -1}], ValueError, r"goal\['decode'\] is -1"),
        ([{"decode": "much"}], TypeError, r"goal\['decode'\]"),
        ([{"decode": 1, "batch": 1}], ValueError, "decode and batch"),
        (["chat", 0], ValueError, "n_prompt is 0"),
        (["chat", 8, 0], ValueError, "n_generate is 0"),
        (["chat", None, None, 4], ValueError, "nothing of several sequences counts"),
        (["batch", None, None, 1], ValueError, "n_sequences is 1"),
    ],
)
def test_what_is_no_goal_is_refused(arguments: list[Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        checked_goal(*arguments)
