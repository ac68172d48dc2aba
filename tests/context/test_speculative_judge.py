"""Whether drafting pays, by times that are made up."""

from __future__ import annotations

from moebind.context.speculative_judge import DRAFTS, PLAIN, Judge


def measured(plain_us: int) -> Judge:
    judge = Judge()
    for number in range(PLAIN):
        assert judge.measures_plain
        judge.saw(1, 10**9 if number == 0 else plain_us, False)  # the first makes the graph
    assert not judge.measures_plain
    return judge


def test_what_gains_goes_on() -> None:
    judge = measured(1000)
    for _ in range(50):
        judge.saw(3, 2500, True)
        judge.saw(1, 1000, False)
    assert judge.reason is None


def test_what_loses_is_switched_off() -> None:
    judge = measured(1000)
    for _ in range(DRAFTS - 1):
        judge.saw(1, 1500, True)
        assert judge.reason is None
    judge.saw(1, 1500, True)
    assert judge.reason == "666.7 tokens/s with drafts, 1000.0 without"


def test_it_notices_later() -> None:
    judge = measured(1000)
    for _ in range(DRAFTS):
        judge.saw(4, 2000, True)
    assert judge.reason is None
    for _ in range(DRAFTS):
        judge.saw(1, 2000, True)
    assert judge.reason is not None


def test_without_drafts_there_is_nothing_to_judge() -> None:
    judge = measured(1000)
    for _ in range(50):
        judge.saw(1, 5000, False)
    assert judge.reason is None
