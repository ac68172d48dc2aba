"""Progress: lines, a function, or nothing."""

from __future__ import annotations

import pytest

from moebind import MoebindError
from moebind.tuning.configuration import Configuration
from moebind.tuning.progress import Progress
from moebind.tuning.search import NO_MEASUREMENT, NO_TIME, Step
from moebind.tuning.trials import Trial

TRIAL = Trial("threads, screening", "n_threads 2", Configuration(), None, {"decode": 5.0}, {}, 1.0)
STEP = Step("threads", "n_threads 2", True, "", (0.1,) * 9, 1.1, 1.05, 1.2)


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(True, 2)
    for each in (TRIAL, TRIAL, STEP, Step("placement", why="there is no device")):
        bar.told(each)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "threads, screening ...",
        "threads: n_threads 2: 1.100 times as fast (1.05 to 1.20), kept",
        "placement: there is no device",
    ]


def test_what_there_was_no_time_for_is_left_to_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(True, 2)
    late = [Step("cache", why=NO_TIME), Step("batch", why=NO_MEASUREMENT)]
    kept_for_now = Step("all of it", "n_threads 2", why=NO_TIME)  # it has a choice, which is told
    for each in (*late, STEP, *late, TRIAL, kept_for_now):
        bar.told(each)
    assert capsys.readouterr().err.splitlines() == [
        "threads: n_threads 2: 1.100 times as fast (1.05 to 1.20), kept",
        "threads, screening ...",
        "all of it: n_threads 2: there was no time for it",
    ]


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(False, 2).told(STEP)
    assert capsys.readouterr() == ("", "")


def test_a_function_gets_fractions() -> None:
    seen: list[float] = []
    bar = Progress(lambda fraction: seen.append(fraction), 2)
    for each in (TRIAL, STEP, STEP, Step("placement"), Step("all of it")):
        bar.told(each)
    assert seen == [0.0, 0.5, 0.5, 1.0, 1.0]


def test_time_counts_too() -> None:
    seen: list[float] = []
    Progress(lambda fraction: seen.append(fraction), 4, lambda: 0.6).told(STEP)
    Progress(lambda fraction: seen.append(fraction), 4, lambda: 9.0).told(STEP)
    assert seen == [0.6, 1.0]


def test_a_function_can_stop_it() -> None:
    with pytest.raises(MoebindError, match="stopped the search"):
        Progress(lambda fraction: False, 2).told(TRIAL)


def test_it_takes_nothing_else() -> None:
    with pytest.raises(TypeError, match="progress"):
        Progress("yes", 2)  # type: ignore[arg-type]
