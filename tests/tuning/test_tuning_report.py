"""What is said of a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from results import STEPS, TOTAL, made_up

from moebind.tuning.configuration import Process
from moebind.tuning.goals import checked_goal
from moebind.tuning.report import explained, line, medians, table
from moebind.tuning.search import NO_MEASUREMENT, NO_TIME, Step

MakeTiny = Callable[..., Path]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def test_a_table(path: Path) -> None:
    lines = table(made_up(path))
    assert len(lines) == 1 + len(STEPS) + 1
    assert lines[0].split() == ["what", "best", "choice", "times", "as", "fast", "95", "%", "rounds", "kept"]
    assert lines[1].endswith("no: there is no device besides the processor")
    assert lines[2].split() == ["micro-batch", "n_ubatch", "128", "1.220", "1.10", "to", "1.30", "9", "yes"]
    assert lines[-1].startswith("all of it")


def test_what_there_was_no_time_for_is_told_once(path: Path) -> None:
    late = [Step(name, why=NO_TIME) for name in ("cache", "threads", "drafts")]
    none = Step("batch", why="there is nothing else to try")
    total = Step("all of it", "what was kept", why=NO_TIME)
    lines = table(made_up(path, steps=(*STEPS, late[0], none, *late[1:]), total=total))
    alone = table(made_up(path, steps=(*STEPS, late[0], none)))
    assert lines[-3:-1] == ["cache, threads, drafts: there was no time for it", *alone[-2:-1]]
    assert lines[0] == alone[0]  # which makes no column wider
    assert lines[-1].split()[:3] == ["all", "of", "it"]
    assert lines[-1].endswith("no: there was no time for it")
    assert alone[-3].split(maxsplit=1) == ["cache", "no: there was no time for it"]
    nothing = tuple(Step(name, why=NO_MEASUREMENT) for name in ("cache", "threads"))
    assert table(made_up(path, steps=nothing, total=None)) == [
        "cache, threads: there was no time for a single measurement"
    ]


def test_sentences(path: Path) -> None:
    assert explained(made_up(path)).splitlines() == [
        "For chat (prompt 25%, decode 75%), measured with 256 tokens of prompt and 64 after it.",
        "n_ubatch 128 + read into memory: 1.350 times as fast as the defaults (95 %: 1.200 to 1.500), in 9 rounds.",
        "prompt: 100 -> 200 tokens/s (medians).",
        "decode: 10.0 -> 13.5 tokens/s (medians).",
        "n_ubatch 128: a divergence of 1.0e-04 nats from the defaults, the same likeliest token at 99% of 60 positions"
        ", 7 of 8 texts equal.",
        "3 measurements, 1 of which failed; all decisions together keep something that is no faster with a chance of "
        "at most 5%.",
    ]


def test_sentences_of_nothing(path: Path) -> None:
    nothing = explained(made_up(path, total=None, complete=False))
    assert "Nothing was faster than the defaults beyond the noise: they are kept." in nothing
    assert "There was no time for all of it: resume=True goes on." in nothing
    undecided = tuple(replace(step, name="", gain=None, low=None, high=None, kept=False, why=NO_TIME) for step in STEPS)
    nothing = explained(made_up(path, steps=undecided, total=None, complete=False))
    assert "There was no time to compare anything with the defaults: they are kept." in nothing
    assert "There was no time for all of it: resume=True goes on." in nothing
    lost = replace(TOTAL, kept=False, why="no faster beyond the noise")
    assert "All of it together: no faster beyond the noise; the defaults are kept." in explained(
        made_up(path, total=lost)
    )


def test_without_a_measurement_nothing_is_said_of_decisions(path: Path) -> None:
    said = explained(made_up(path, steps=(), trials=(), total=None, complete=False, agreements={}))
    assert said.splitlines()[1:] == [
        "Nothing was measured: the defaults are kept.",
        "There was no time for a single measurement: give more minutes; resume=True goes on.",
    ]
    assert "measurements" not in said and "decisions" not in said


@pytest.mark.parametrize(
    ("seconds", "said", "minutes"),
    [(1.0, "0.1", 1), (133.0, "2.3", 9), (252.0, "4.2", 17), (599.9, "10.0", 40), (7200.0, "120", 480)],
)
def test_too_little_time_is_told_with_what_it_takes(path: Path, seconds: float, said: str, minutes: int) -> None:
    sentence = explained(made_up(path, total=None, complete=False, needs=seconds)).splitlines()[-1]
    assert sentence == (
        f"There was less time than a single comparison of this model takes, about {said} minutes: give "
        f"minutes={minutes} or more (resume=True goes on), or shorter texts, such as n_prompt=64 and n_generate=16, or "
        "only some dimensions (dimensions=[...])."
    )


def test_texts_that_are_short_already_are_not_told_to_be_shorter(path: Path) -> None:
    found = made_up(path, total=None, complete=False, needs=60.0, steps=STEPS[:1], goal=checked_goal("chat", 16, 4))
    assert explained(found).endswith("about 1.0 minutes: give minutes=4 or more (resume=True goes on).")


def test_what_took_more_than_was_planned_is_told_once(path: Path) -> None:
    first, second, failed = made_up(path).trials
    trials = (
        replace(first, unplanned={"RPC0": 2**20}),
        replace(first, unplanned={"RPC0": 3 * 2**20, "Host": 2**19}),
        second,
        failed,
    )
    said = explained(made_up(path, trials=trials)).splitlines()
    assert [each for each in said if "planned" in each] == [
        "best so far: it took 3.0 MiB more of RPC0 than was planned.",
        "best so far: it took 0.5 MiB more of Host than was planned.",
    ]
    assert "planned" not in explained(made_up(path))


def test_what_other_programs_need(path: Path) -> None:
    said = explained(made_up(path, process=Process({"A": "1"}, (0, 2))))
    assert "For other programs: A=1 taskset -c 0,2 before the command." in said


def test_several_sequences_are_told(path: Path) -> None:
    said = explained(made_up(path, goal=checked_goal("batch"), trials=()))
    assert "measured with 8 sequences side by side, each of 128 tokens of prompt and 32 after it." in said


def test_lines() -> None:
    assert line(STEPS[0]) == "placement: there is no device besides the processor"
    assert line(STEPS[1]) == "micro-batch: n_ubatch 128: 1.220 times as fast (1.10 to 1.30), kept"
    off = Step("flash attention", "flash attention off", why="not faster")
    assert line(off) == "flash attention off: not faster"
    assert line(STEPS[2]).endswith("not kept: no faster beyond the noise")


def test_medians_are_of_the_last_comparison(path: Path) -> None:
    assert medians(made_up(path)) == {"prompt": (100.0, 200.0), "decode": (10.0, 13.5)}
    assert medians(made_up(path, trials=())) == {}
