"""Whether drafting pays, by times that are made up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from moebind.context.speculative_judge import AGAIN, LOSS_MAX, PLAIN, STEPS_MAX, WAIT, WAIT_MAX, Judge

PLAIN_US = 1000.0


@dataclass
class Machine:
    """Computes texts by a described cost: steps without drafts, and with drafts, of which so many tokens are right.

    ``lost`` is what was lost against plain computation, ``step_max`` what a drafted step took at most.
    """

    judge: Judge
    plain: Callable[[], float] = lambda: PLAIN_US
    lost: float = 0.0
    step_max: float = 0.0
    n_tokens: int = 0
    n_drafted: int = 0
    n_switched_off: int = 0

    def text(self, n_tokens: int, drafted: Callable[[], tuple[float, int]]) -> list[str]:
        """Compute a text; returns its steps, as ``P`` or ``D``. ``drafted`` gives a step's time and tokens."""
        self.judge.text_begins()
        steps = []
        end = self.n_tokens + n_tokens
        while self.n_tokens < end:
            before = self.judge.reason
            if self.judge.wants_draft:
                took, n = drafted()
                steps.append("D")
                self.n_drafted += 1
                self.step_max = max(self.step_max, took)
                self.lost += took - n * PLAIN_US
                self.judge.saw(n, took, drafted=True)
            else:
                n = 1
                steps.append("P")
                self.judge.saw(1, self.plain(), drafted=False)
            self.n_tokens += n
            self.n_switched_off += before is None and self.judge.reason is not None
        return steps


def test_both_take_turns_at_first() -> None:
    machine = Machine(Judge())
    steps = "".join(machine.text(200, lambda: (2500, 3)))
    # The very first is not compared: its graph is made anew.
    assert steps.startswith("PP" + "DP" * (PLAIN - 1) + "D" * AGAIN + "P" + "D")
    assert machine.judge.reason is None
    assert machine.lost < 0


def test_what_loses_is_switched_off_within_some_tokens(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(Judge())
    with caplog.at_level(logging.INFO, "moebind.speculative"):
        steps = "".join(machine.text(40, lambda: (8000, 5)))
    assert steps.startswith("PPDPDPDPPPP")
    assert steps.count("D") == 3
    assert machine.judge.reason == "625.0 tokens/s with drafts, 1000.0 without"
    [record] = caplog.records
    assert record.getMessage() == f"drafting is switched off for {WAIT} tokens: {machine.judge.reason}"
    assert machine.lost == 9000


@pytest.mark.parametrize("seed", range(50))
def test_the_loss_is_bounded(seed: int) -> None:
    """Whatever a drafted step costs, and however many of its tokens are right."""
    random = np.random.default_rng(seed)
    most, right, n_max = random.uniform(0.5, 12), random.uniform(0, 1), int(random.integers(1, 12))

    def drafted() -> tuple[float, int]:
        n = 1
        while n <= n_max and random.random() < right:
            n += 1
        return PLAIN_US * random.uniform(0.5, most), n

    machine = Machine(Judge())
    for _ in range(int(random.integers(1, 12))):
        machine.text(int(random.integers(1, 300)), drafted)
        tries = machine.n_switched_off + 1
        assert machine.lost <= tries * (LOSS_MAX * PLAIN_US + STEPS_MAX * machine.step_max)
    # Each time it loses, it waits for twice as long, unless it drafted for long in between: so there are few tries.
    assert machine.n_switched_off <= 1 + np.log2(1 + machine.n_tokens / WAIT) + machine.n_drafted / AGAIN


def test_a_verdict_goes_for_the_next_texts() -> None:
    machine = Machine(Judge())
    machine.text(40, lambda: (8000, 5))
    assert 0 < machine.judge._left < WAIT
    assert set(machine.text(machine.judge._left, lambda: (8000, 5))) == {"P"}
    assert machine.judge.drafts
    # It is tried again, and pays now.
    assert "D" in machine.text(40, lambda: (2000, 4))
    assert machine.judge.reason is None


def test_it_waits_longer_each_time(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(Judge())
    with caplog.at_level(logging.INFO, "moebind.speculative"):
        machine.text(4 * WAIT_MAX, lambda: (8000, 1))
    waits = [record.args[0] for record in caplog.records if isinstance(record.args, tuple) and record.args]
    assert waits[:4] == [WAIT, 2 * WAIT, 4 * WAIT, 8 * WAIT]
    assert max(waits) == WAIT_MAX  # type: ignore[type-var]


def test_after_a_long_gain_it_waits_as_at_first() -> None:
    machine = Machine(Judge())
    machine.text(40, lambda: (8000, 1))
    assert machine.judge._wait == 2 * WAIT
    machine.text(1000, lambda: (2000, 4))
    assert machine.judge._wait == WAIT


def test_it_notices_later() -> None:
    machine = Machine(Judge())
    machine.text(1000, lambda: (2000, 4))
    before = machine.lost
    steps = machine.text(40, lambda: (2000, 1))
    assert machine.judge.reason is not None
    # What was gained is kept only as far as what may be lost.
    assert steps.count("D") == 2 * LOSS_MAX
    assert machine.lost - before <= 2 * LOSS_MAX * PLAIN_US


def test_a_single_slow_step_decides_nothing() -> None:
    times = iter([2000.0, 2000.0, 50_000.0])
    machine = Machine(Judge())
    machine.text(400, lambda: (next(times, 2000.0), 4))
    assert machine.judge.reason is None


def test_slow_plain_steps_now_and_then_are_left_out() -> None:
    times = iter([1e9, 1000, 1000, 1e6, 1000, 1000, 1e6])  # the first makes the graph
    machine = Machine(Judge(), plain=lambda: next(times, PLAIN_US))
    machine.text(60, lambda: (8000, 4))
    assert machine.judge.reason is not None


def test_looking_for_drafts_in_vain() -> None:
    judge = Judge()
    judge.text_begins()
    for _ in range(100):
        judge.saw(1, PLAIN_US, drafted=False, searched=1.0)
    assert judge.reason is None
    for _ in range(8):
        judge.saw(1, PLAIN_US, drafted=False, searched=PLAIN_US)
    assert judge.reason == "looking for drafts in vain took as long as 4 tokens"


def test_without_drafts_there_is_nothing_to_judge() -> None:
    judge = Judge()
    for _ in range(500):
        judge.saw(1, 5000, drafted=False)
    assert judge.reason is None


def test_a_clock_that_stands_still() -> None:
    judge = Judge()
    for drafted in [False, False, True, False, True, True]:
        judge.saw(1, 0, drafted=drafted)
    assert judge.reason is None
