"""The search on machines that are only described, where the best is known."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from simulated import PLACEMENT, Machine, Point, random_machine

from moebind.tuning.decision import ERROR
from moebind.tuning.search import Choice, Found, search

#: How many machines.
COUNT = 200


def run(machine: Machine) -> Found[Point]:
    return search(machine.start, list(machine.effects), machine)


@cache
def results() -> list[tuple[Machine, Found[Point]]]:
    """The search on machines as they are, with noise of up to 3 %, and one measurement in twenty half as long again."""
    return [(machine, run(machine)) for machine in map(random_machine, range(COUNT))]


def test_the_best_is_known_by_brute_force() -> None:
    machine = random_machine(3)
    costs = []
    for at in np.ndindex(*map(len, machine.effects.values())):
        point = dict(zip(machine.effects, at, strict=True))
        if machine.takes(point) <= machine.room:
            costs.append(machine.cost(point))
    assert machine.best() == pytest.approx(min(costs))


def test_on_most_machines_it_finds_the_best() -> None:
    gaps = [machine.cost(found.best) - machine.best() for machine, found in results()]
    assert min(gaps) > -1e-9
    assert sum(gap < 0.03 for gap in gaps) >= 0.8 * COUNT
    # What is there to be found: so much on average.
    assert np.mean([-machine.best() for machine, _ in results()]) > 0.5


def test_nearly_always_it_finds_the_best_where_it_is_quiet() -> None:
    gaps = []
    for seed in range(COUNT):
        machine = random_machine(seed)
        machine.noise, machine.spikes = 1e-6, 0.0
        gaps.append(machine.cost(run(machine).best) - machine.best())
    assert sum(gap < 0.03 for gap in gaps) >= 0.9 * COUNT


def test_it_is_never_slower_than_the_defaults() -> None:
    for machine, found in results():
        assert machine.cost(found.best) <= machine.cost(machine.start) + machine.noise


def test_what_it_says_of_the_gain_is_so() -> None:
    inside = [
        math.log(found.total.low)
        <= machine.cost(machine.start) - machine.cost(found.best)
        <= math.log(found.total.high)
        for machine, found in results()
        if found.total is not None and found.total.kept and found.total.low and found.total.high
    ]
    assert len(inside) > COUNT / 2
    # A kept result had its rounds chosen by nothing: the interval covers what is so in 19 of 20 cases.
    assert sum(inside) / len(inside) > 1 - ERROR - 4 * math.sqrt(ERROR / len(inside))


def test_where_nothing_is_faster_the_defaults_are_kept() -> None:
    wrong = 0
    for seed in range(COUNT):
        machine = Machine({f"d{at}": [0.0] * 4 for at in range(8)}, noise=0.03, seed=seed)
        found = run(machine)
        wrong += found.best != machine.start
        assert (found.total is None) == (not any(step.kept for step in found.steps))
    # Four standard deviations beyond the chance that is allowed.
    assert wrong <= COUNT * ERROR + 4 * math.sqrt(COUNT * ERROR)


def test_what_takes_too_much_is_never_measured() -> None:
    for machine, found in results():
        assert all(machine.takes(point) <= machine.room + 1e-9 for point in machine.measured)
        assert machine.takes(found.best) <= machine.room + 1e-9
    refused = sum(step.refused for _, found in results() for step in found.steps)
    assert refused > 0


def test_what_dies_is_left_out() -> None:
    machine = Machine({"a": [0.0, -0.5, -0.4], "b": [0.0, -0.3]}, fails=frozenset({("a", 1), ("b", 1)}))
    found = run(machine)
    assert found.best == {"a": 2, "b": 0}
    [step] = [step for step in found.steps if step.dimension == "b"][:1]
    assert step.why == "it failed: the process was ended by SIGSEGV"


def test_a_search_ends_where_the_defaults_die() -> None:
    machine = Machine({"a": [0.0, -0.5]}, fails=frozenset({("a", 0)}))
    found = run(machine)
    assert found.best == machine.start
    assert found.steps[0].why == "the best so far failed: the process was ended by SIGSEGV"


def test_what_computes_something_else_is_not_kept() -> None:
    machine = Machine({"a": [0.0, -0.5], "b": [0.0, -0.3]}, wrong=frozenset({("a", 1)}))
    found = run(machine)
    assert found.best == {"a": 0, "b": 1}
    assert found.steps[0].why == "it computes something else"
    assert found.steps[0].gain is not None


@pytest.mark.parametrize("limit", [0.0, 3.0, 10.0, 30.0, 60.0, 120.0])
def test_it_keeps_to_its_time(limit: float) -> None:
    machine = random_machine(7)
    machine.limit = limit
    found = run(machine)
    # The last round may take a little longer, and the last comparison is always made.
    assert machine.used <= limit + 2 * max(map(len, machine.effects.values()))
    assert not found.complete or limit >= 60
    assert machine.cost(found.best) <= machine.cost(machine.start) + machine.noise


def test_with_all_the_time_it_is_complete() -> None:
    assert all(found.complete for _, found in results())


def test_everything_is_told() -> None:
    machine, found = results()[0]
    total = [] if found.total is None else [found.total]
    assert machine.steps == [*found.steps, *total]
    assert {step.dimension for step in found.steps} == set(machine.effects)


def test_a_dimension_that_cannot_matter_says_why() -> None:
    machine = Machine({"a": [0.0], "b": [0.0, -0.3]})
    found = run(machine)
    assert [step.why for step in found.steps if step.dimension == "a"] == ["there is only one"]
    assert found.best == {"a": 0, "b": 1}


def test_what_depends_on_a_later_choice_is_found_in_the_second_pass() -> None:
    table = np.zeros((2, 2))
    table[1, 1] = -0.4  # neither alone, and the second gives a little by itself
    machine = Machine({"a": [0.0, 0.1], "b": [0.0, -0.1]}, {("a", "b"): table}, noise=0.005, spikes=0.0)
    assert run(machine).best == {"a": 1, "b": 1}


def test_rounds_take_turns() -> None:
    orders = []

    class Watched(Machine):
        def round(self, purpose, subjects):  # type: ignore[no-untyped-def]
            orders.append((purpose, [name for name, _ in subjects]))
            return super().round(purpose, subjects)

    machine = Watched({"a": [0.0, -0.3]}, noise=0.001, spikes=0.0)
    run(machine)
    pairs = [names for purpose, names in orders if purpose == "a, confirmation"]
    assert pairs[0] == ["best so far", "a 1"]
    assert pairs[1] == ["a 1", "best so far"]
    assert all(sorted(names) == ["a 1", "best so far"] for names in pairs)


def test_a_placement_makes_room() -> None:
    machine = Machine({PLACEMENT: [0.0, 0.05], "b": [0.0, -0.4]}, {}, {PLACEMENT: [0.7, 0.2], "b": [0.1, 0.6]}, 0.8)
    assert run(machine).best == {PLACEMENT: 1, "b": 1}


def test_choices_are_plain() -> None:
    assert Choice("a", 1) == Choice("a", 1, None)
