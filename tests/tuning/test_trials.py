"""Trials: real processes, which die, take too long or say why they cannot, and a journal before them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL
from moebind import ModelParams
from moebind.bench.record import FailedError
from moebind.tuning import trials as module
from moebind.tuning.configuration import Configuration
from moebind.tuning.goals import checked_goal
from moebind.tuning.journal import Journal
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

    def trials(*, devices: list[dict[str, Any]] | None = None, resume: bool = False, **arguments: Any) -> Trials:
        request = {
            "path": str(path),
            "devices": devices or [],
            "memory": None,
            "draft": None,
            "given": GIVEN.to_dict(),
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
    again.round("test", [("a", again.start)])
    assert again.time_left() <= 0
