"""Trials: real processes, which die, take too long or say why they cannot, and a journal before them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import SMALL
from moebind import ModelParams
from moebind.bench.record import FailedError
from moebind.tuning import trials as module
from moebind.tuning.configuration import MIN_BATCH, Configuration
from moebind.tuning.goals import checked_goal
from moebind.tuning.journal import Journal
from moebind.tuning.search import NoTimeError
from moebind.tuning.speculation import Speculation
from moebind.tuning.trials import Trial, Trials

MakeTiny = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("no_child_is_left")
GOAL = checked_goal("chat", 16, 4)
GIVEN = Configuration.of(ModelParams(n_gpu_layers=0), SMALL)
PROMPTS = ["the cat is in it", "a to of"]


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


@pytest.fixture
def make(path: Path, tmp_path: Path) -> Iterator[Callable[..., Trials]]:
    journals: list[Journal] = []

    def trials(
        *,
        devices: list[dict[str, Any]] | None = None,
        given: Configuration = GIVEN,
        resume: bool = False,
        **arguments: Any,
    ) -> Trials:
        request = {
            "path": str(path),
            "devices": devices or [],
            "memory": None,
            "draft": None,
            "given": given.to_dict(),
            "given_fields": [],
        }
        for each in journals:  # one search at a time writes into it
            each.close()
        journals.append(Journal(tmp_path / "journal", {}, resume=resume))
        usual: dict[str, Any] = {"logits": str(tmp_path), "prompts": PROMPTS, "seconds": 600.0}
        return Trials(request, arguments.pop("goal", GOAL), journals[-1], **{**usual, **arguments})

    yield trials
    for each in journals:
        each.close()


def test_a_round_measures_all_and_keeps_them(make: Callable[..., Trials], tmp_path: Path) -> None:
    made = make()
    other = made.start.with_context(n_ubatch=64)
    read = made.start.with_model(ModelParams(n_gpu_layers=0).with_use_mmap(False))
    found = made.round("test", [("first", made.start), ("small", other), ("read", read)])
    assert [each.failure for each in found] == [None] * 3
    for each, trial in zip(found, made.trials, strict=True):
        assert each.cost == pytest.approx(GOAL.cost(trial.speeds))
        assert set(trial.speeds) == {"prompt", "decode"}
        assert all(speed > 0 for speed in trial.speeds.values())
        assert trial.memory["Host"] > 0
        assert each.seconds == trial.seconds > 0
    assert [trial.name for trial in made.trials] == ["first", "small", "read"]
    questions = [json.loads(line)["question"]["what"] for line in (tmp_path / "journal").read_text().splitlines()[1:]]
    assert questions == ["start", "round"]
    again = make(resume=True)
    assert again.round("test", [("first", again.start), ("small", other), ("read", read)]) == found


def test_several_sequences(make: Callable[..., Trials]) -> None:
    goal = checked_goal("batch", 8, 4, 2)
    made = make(goal=goal)
    two = made.start.with_context(n_seq_max=2, n_ctx=512)
    [found] = made.round("test", [("two", two)])
    assert found.failure is None
    assert set(made.trials[0].speeds) == {"prompt", "batch"}


def test_those_that_are_loaded_alike_share_a_process(
    make: Callable[..., Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []

    def child(name: str, request: Any, **more: Any) -> Any:
        if "contexts" in request:
            loads.append(len(request["contexts"]))
        return run(name, request, **more)

    run = module.run_child
    monkeypatch.setattr(module, "run_child", child)
    made = make()
    small, pinned = made.start.with_context(n_ubatch=32), made.start.with_process(environment={"A": "1"})
    made.round("test", [("a", made.start), ("b", small), ("c", pinned), ("d", made.start)])
    assert loads == [2, 1, 1]


def test_what_is_set_for_a_process_is_set_where_it_is_measured(
    make: Callable[..., Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the environment, ``test_configuration.py`` sees it: the kernel shows only what a process began with."""
    seen: list[list[int]] = []

    def child(name: str, request: Any, *, handlers: Any = None, **more: Any) -> Any:
        def begins(pid: int, fields: Any) -> None:
            seen.append(sorted(psutil.Process(pid).cpu_affinity()))
            handlers["begins"](pid, fields)

        watched = {**handlers, "begins": begins} if "contexts" in request else handlers
        return run(name, request, handlers=watched, **more)

    run = module.run_child
    monkeypatch.setattr(module, "run_child", child)
    made = make()
    everywhere = sorted(os.sched_getaffinity(0))
    one = made.start.with_process(cpus=(everywhere[0],))
    nodes = made.start.with_process(numa="ISOLATE")
    threshold = made.start.with_process(environment={MIN_BATCH: "8"})
    found = made.round("test", [("all", made.start), ("one", one), ("numa", nodes), ("threshold", threshold)])
    assert [each.failure for each in found] == [None] * 4
    assert seen == [everywhere, everywhere[:1], everywhere, everywhere]


def test_what_cannot_be_made_is_a_row(make: Callable[..., Trials]) -> None:
    made = make()
    short = made.start.with_context(n_ctx=16)  # the cache has room for 256 all the same; less is not to be had
    none = made.start.with_context(type_v="Q8_0", flash_attn_type="DISABLED")
    lost = made.start.with_model(ModelParams().with_cpu_override("nothing_like_it"))
    found = made.round("test", [("none", none), ("short", short), ("lost", lost)])
    assert found[0].cost is None
    assert found[0].failure is not None
    assert found[1].failure is None
    assert found[2].failure is not None
    assert "nothing_like_it" in found[2].failure
    assert [trial.failure is None for trial in made.trials] == [False, True, False]


def test_what_dies_is_a_row_and_the_others_go_on(make: Callable[..., Trials], monkeypatch: pytest.MonkeyPatch) -> None:
    made = make()
    calls: list[int] = []

    def child(name: str, request: Any, *, handlers: Any, **more: Any) -> None:
        contexts = request["contexts"]
        calls.append(len(contexts))
        for number, context in enumerate(contexts):
            handlers["begins"](1, {"number": number})
            if context["n_ubatch"] == 13:
                raise FailedError("the process was ended by SIGSEGV")
            handlers["measured"](1, {"number": number, "seconds": 0.1, "speeds": {"prompt": 5.0, "decode": 1.0}})

    monkeypatch.setattr(module, "run_child", child)
    good, bad = made.start.with_context(n_ubatch=64), made.start.with_context(n_ubatch=13)
    found = made.round("test", [("a", good), ("b", bad), ("c", good), ("d", bad), ("e", good)])
    assert [each.failure for each in found] == [None, "the process was ended by SIGSEGV"] * 2 + [None]
    assert calls == [5, 3, 1]


def test_a_load_that_fails_fails_for_all(make: Callable[..., Trials], monkeypatch: pytest.MonkeyPatch) -> None:
    made = make()

    def child(name: str, request: Any, **more: Any) -> None:
        raise FailedError("the process was ended by SIGKILL: by somebody, or by the system, because memory ran out")

    monkeypatch.setattr(module, "run_child", child)
    found = made.round("test", [("a", made.start), ("b", made.start.with_context(n_ubatch=64))])
    assert all("memory ran out" in (each.failure or "") for each in found)


def test_what_takes_too_long_is_a_row(make: Callable[..., Trials]) -> None:
    made = make()
    made._timeout = 0.01  # no process has even begun by then
    [found] = made.round("test", [("a", made.start)])
    assert found.failure == "it took longer than the 0.01 seconds that were allowed, and was ended"


def test_what_takes_longer_than_there_is_time_is_no_row(make: Callable[..., Trials], tmp_path: Path) -> None:
    made = make()
    with pytest.raises(NoTimeError):
        made.round("test", [("a", made.start)], within=lambda: 0.01)
    with pytest.raises(NoTimeError):
        made.check("a", made.start, within=lambda: 0.01)
    with pytest.raises(NoTimeError):
        made.round("test", [("a", made.start)], within=lambda: -1.0)
    for seconds in (0.01, -1.0):
        with pytest.raises(NoTimeError):
            made.choices("placement", made.start, within=lambda seconds=seconds: seconds)
    assert made.trials == []
    assert made.agreements == {}
    # So it is measured when the search goes on.
    assert (tmp_path / "journal").read_text().count("\n") == 2
    again = make(resume=True)
    [found] = again.round("test", [("a", again.start)], within=lambda: 600.0)
    assert found.failure is None


def test_a_failure_in_time_is_a_row(make: Callable[..., Trials], monkeypatch: pytest.MonkeyPatch) -> None:
    def child(name: str, request: Any, *, timeout: float | None, **more: Any) -> None:
        timeouts.append(timeout)
        raise FailedError("the process was ended by SIGSEGV")

    made, timeouts = make(timeout=50.0), list[float | None]()
    monkeypatch.setattr(module, "run_child", child)
    for seconds in (inf, 1000.0, 40.0):
        [found] = made.round("test", [("a", made.start)], within=lambda seconds=seconds: seconds)
        assert found.failure == "the process was ended by SIGSEGV"
    assert timeouts[:2] == [50.0, 50.0]
    assert timeouts[2] is not None
    assert 0 < timeouts[2] <= 40.0


def test_with_drafts_all_of_a_round_write_texts(make: Callable[..., Trials], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, list[Any]]] = []

    def child(name: str, request: Any, **more: Any) -> Any:
        if "contexts" in request:
            asked.append((request["writes"], [each and each["kind"] for each in request["speculations"]]))
        return run(name, request, **more)

    run = module.run_child
    monkeypatch.setattr(module, "run_child", child)
    made = make()
    drafts = made.start.with_speculation(Speculation("ngram-mod"))
    other = made.start.with_process(environment={"A": "1"})
    for found in (
        *made.round("test", [("a", made.start), ("b", drafts), ("c", other)]),
        *made.round("test", [("a", made.start)]),
    ):
        assert found.failure is None
    assert asked == [(True, [None, "ngram-mod"]), (True, [None]), (False, [None])]
    assert made.check("drafts", drafts) is None
    assert made.agreements["drafts"].same_continuations == len(PROMPTS)


def test_what_drafts_side_by_side(make: Callable[..., Trials]) -> None:
    made = make(goal=checked_goal("batch", 8, 4, 2))
    two = made.start.with_context(n_seq_max=2, n_ctx=512)
    found = made.round("test", [("two", two), ("drafts", two.with_speculation(Speculation("ngram-simple")))])
    assert [each.failure for each in found] == [None, None]
    assert all(set(each.speeds) == {"prompt", "batch"} for each in made.trials)


def test_what_cannot_draft_is_a_row(make: Callable[..., Trials]) -> None:
    made = make()
    [found] = made.round("test", [("own", made.start.with_speculation(Speculation("draft-mtp", n_max=1)))])
    assert found.cost is None
    assert found.failure


def test_what_took_more_than_it_was_planned_to_says_so(
    make: Callable[..., Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    made.round("test", [("a", made.start)])
    assert dict(made.trials[0].unplanned) == {}
    planned = made.began["planned"]["Host"]
    assert made.trials[0].memory["Host"] <= planned

    def child(name: str, request: Any, *, handlers: Any, **more: Any) -> None:
        handlers["begins"](1, {"number": 0})
        memory = {"Host": planned + 5, "RPC7": 3}
        speeds = {"prompt": 1.0, "decode": 1.0}
        handlers["measured"](1, {"number": 0, "seconds": 0.1, "speeds": speeds, "memory": memory})

    monkeypatch.setattr(module, "run_child", child)
    made.round("test", [("a", made.start), ("b", made.start.with_process(environment={"A": "1"}))])
    assert [dict(each.unplanned) for each in made.trials[1:]] == [{"Host": 5, "RPC7": 3}, {}]  # of b there is no plan


def test_each_choice_is_planned(make: Callable[..., Trials]) -> None:
    given = Configuration.of(ModelParams(), SMALL)
    made = make(devices=[{"kind": "loopback", "memory": 2**26, "n_threads": 1}], given=given)
    found = made.choices("placement", made.start)
    assert not isinstance(found, str)
    [moved] = [each.subject for each in found if each.name == "all experts in host memory"]
    made.round("test", [("a", made.start), ("b", moved)])
    plans = [next(sizes for each, sizes in made._planned if each == subject) for subject in (made.start, moved)]
    for trial, planned in zip(made.trials, plans, strict=True):
        assert trial.failure is None
        assert set(trial.memory) <= set(planned)
        assert dict(trial.unplanned) == {}
    assert plans[0]["RPC0"] > plans[1]["RPC0"]


def test_the_same_change_in_a_later_pass_has_its_own_results(make: Callable[..., Trials]) -> None:
    made = make()
    for _ in range(2):
        assert made.check("small", made.start.with_context(n_ubatch=32)) is None
    assert list(made.agreements) == ["small", "small, again"]


def test_results_are_compared(make: Callable[..., Trials]) -> None:
    made = make()
    assert made.check("small", made.start.with_context(n_ubatch=32)) is None
    assert made.agreements["small"].mean_kl < 1e-6
    # Another number of experts is another model.
    one = ModelParams(n_gpu_layers=0).with_kv_override("llama.expert_used_count", 1)
    assert (made.check("one", made.start.with_model(one)) or "").startswith(
        "it computes something else: a divergence of"
    )
    lost = ModelParams().with_cpu_override("nothing_like_it")
    assert (made.check("lost", made.start.with_model(lost)) or "").startswith("its results could not be compared")


def test_choices_come_from_a_process_with_the_devices(make: Callable[..., Trials]) -> None:
    made = make(devices=[{"kind": "loopback", "memory": 2**26, "n_threads": 1}])
    assert set(made.began["budgets"]) == {"RPC0"}
    found = made.choices("placement", made.start)
    assert not isinstance(found, str)
    assert "all experts in host memory" in {each.name for each in found}
    assert made.choices("pinned memory", made.start) == "no device has pinned memory"


def test_everything_is_told(make: Callable[..., Trials]) -> None:
    told: list[Any] = []
    made = make(told=told.append)
    made.round("test", [("a", made.start)])
    assert told == made.trials
    assert isinstance(told[0], Trial)


def test_the_time_that_is_left(make: Callable[..., Trials]) -> None:
    made = make(seconds=1e6)
    assert 0 < made.time_left() <= 1e6
    made.round("test", [("a", made.start)])
    again = make(seconds=0.0, resume=True)
    assert again.time_left() == float("inf")  # what was measured already takes none
    again.round("test", [("a", again.start)], again.time_left)
    assert again.time_left() <= 0


def test_what_is_new_after_a_resume_has_the_time_that_is_left(make: Callable[..., Trials]) -> None:
    made = make()
    made.round("test", [("a", made.start)])
    questions: list[Callable[[Trials], object]] = [
        lambda trials: trials.round("something else", [("a", trials.start)], trials.time_left),
        lambda trials: trials.choices("placement", trials.start, trials.time_left),
        lambda trials: trials.check("a", trials.start, trials.time_left),
    ]
    for ask in questions:
        again = make(seconds=0.0, resume=True)
        assert again.time_left() == float("inf")  # that it asks something else is not known yet
        with pytest.raises(NoTimeError):
            ask(again)
