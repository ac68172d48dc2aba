"""The search on machines that are only described, where the best is known."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from simulated import PLACEMENT, Machine, Point, random_machine

from moebind.tuning import search as search_module
from moebind.tuning.decision import ERROR
from moebind.tuning.search import NO_TIME, UNEVEN, Choice, Found, Measured, NoTimeError, Step, search

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


@pytest.mark.parametrize(("limit", "planning"), [(0.0, 0.0), (30.0, 0.0), (100.0, 0.0), (300.0, 0.0), (300.0, 40.0)])
def test_it_keeps_to_its_time(limit: float, planning: float) -> None:
    for seed in range(COUNT):
        machine = random_machine(seed)
        machine.limit, machine.uneven, machine.checking, machine.planning = limit, 0.3, 6.0, planning
        found = run(machine)
        # What was begun in time is ended soon after it: at the latest when others would have been done twice.
        longest = max((each.seconds for each in machine.results), default=0.0)
        assert machine.used <= limit + UNEVEN * longest, seed
        # Where there is time for several decisions, and not for all, it is used: but for what is kept back.
        assert found.complete or limit < 200 or machine.used > limit / 2, seed
        assert machine.cost(found.best) <= machine.cost(machine.start) + machine.noise, seed


def test_what_is_kept_is_seldom_lost_for_lack_of_time() -> None:
    lost = 0
    for seed in range(COUNT):
        machine = random_machine(seed)
        machine.limit, machine.uneven, machine.checking = 100.0, 0.3, 6.0
        found = run(machine)
        lost += found.total is not None and found.total.why == NO_TIME
    assert lost <= COUNT * 0.05


@pytest.mark.parametrize("seconds", [1.0, 40.0])
def test_too_little_time_is_known_after_two_measurements(seconds: float) -> None:
    machine = random_machine(7)
    machine.seconds, machine.limit = seconds, 45 * seconds
    found = run(machine)
    assert len(machine.measured) == 2
    assert found.needs is not None
    assert {step.why for step in found.steps} == {NO_TIME}
    assert machine.limit < found.needs < 2 * machine.limit
    # With what it says, something can be decided.
    effects = {name: [0.0] for name in machine.effects}
    again = Machine({**effects, "threads": [0.0, -0.5]}, seconds=seconds, limit=found.needs, checking=6.0)
    decided = run(again)
    assert decided.needs is None
    assert decided.best["threads"] == 1


def test_a_first_load_from_the_disk_is_not_taken_for_all() -> None:
    class Cold(Machine):
        def _measure(self, point, until):  # type: ignore[no-untyped-def]
            self.seconds = 1.0 if self.measured else 60.0
            return super()._measure(point, until)

    machine = Cold({"a": [0.0, -0.5]}, limit=200.0)
    found = run(machine)
    assert found.needs is None
    assert found.best == {"a": 1}
    # Without time to look once more, it is all that is known.
    machine = Cold({"a": [0.0, -0.5]}, limit=100.0)
    found = run(machine)
    assert len(machine.measured) == 1
    assert found.needs is not None
    assert found.needs > 60 * 40


def test_a_first_measurement_that_takes_too_long() -> None:
    machine = random_machine(7)
    machine.seconds, machine.limit = 100.0, 50.0
    found = run(machine)
    assert (machine.used, machine.measured, found.needs, found.complete) == (50.0, [], None, False)
    assert {step.why for step in found.steps} == {"there was no time for a single measurement"}


def test_a_choice_that_is_far_slower_than_thought_costs_no_more_than_its_share() -> None:
    class Stalls(Machine):
        def _measure(self, point, until):  # type: ignore[no-untyped-def]
            self.seconds = 1e9 if point["a"] == 1 else 1.0
            return super()._measure(point, until)

    machine = Stalls({"a": [0.0, -0.5], "b": [0.0, -0.3]}, noise=0.001, spikes=0.0, limit=200.0)
    found = run(machine)
    # All the time that was not kept back for the last comparison is gone, and there is nothing to compare.
    assert [step.why for step in found.steps] == [NO_TIME, NO_TIME]
    assert machine.used <= 200.0
    assert not found.complete


@pytest.mark.parametrize(("wins", "kept"), [(12, True), (11, False)])
def test_the_second_look_is_earlier_if_the_time_is_over(wins: int, kept: bool) -> None:
    class Script(Machine):
        """The second is faster in these rounds of the comparison, and then the time is over, after 14 of them."""

        def round(self, purpose, subjects, within):  # type: ignore[no-untyped-def]
            if len(self.results) == 28:
                raise NoTimeError
            faster = len(self.results) // 2 % 7 * 2 + len(self.results) // 14 < wins
            found = [Measured(-0.1 if point["a"] and faster else 0.0) for _, point in subjects]
            self.results += found
            return found

    machine = Script({"a": [0.0, 0.0]})
    clock = search_module._Clock(machine, 14, 42)
    step = search_module._compare(Step("all", "it"), {"a": 0}, {"a": 1}, clock, ERROR / 2, last=True)
    assert len(step.differences) == 14
    assert sum(each > 0 for each in step.differences) == wins
    # Of 14 coins, at most 2 are against it with a chance of 0.65 %, and at most 3 with one of 2.9 %.
    assert (step.kept, step.why) == (kept, "" if kept else NO_TIME)


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
        def round(self, purpose, subjects, within):  # type: ignore[no-untyped-def]
            orders.append((purpose, [name for name, _ in subjects]))
            return super().round(purpose, subjects, within)

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
