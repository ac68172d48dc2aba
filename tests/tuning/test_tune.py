"""``moebind.tune``: real searches on a tiny model, and searches whose measurements are made up."""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moebind
from conftest import SMALL
from moebind import ContextParams, Device, FitError, Model, ModelNotFoundError, ModelParams, MoebindError, Tuning
from moebind.bench.agreement import write_captured
from moebind.bench.measure import Captured
from moebind.bench.record import FailedError
from moebind.tuning import planning_process, saved, trials

#: Who is told by what plans: nothing is.
NOBODY: Any = None
MakeTiny = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("no_child_is_left")
#: Few tokens, of one sequence, and texts that are soon compared.
QUICK: dict[str, Any] = {
    "n_prompt": 16,
    "n_generate": 4,
    "context_params": SMALL,
    "prompts": ["the cat is in it"],
    "devices": [],
    "progress": False,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEBIND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


class Machine:
    """Plays the processes that measure: a table says how fast what is, and plans are made by real ones."""

    def __init__(self, speed: Callable[[Mapping[str, Any], Mapping[str, Any]], float]) -> None:
        self.speed = speed
        self.random = np.random.default_rng(1)
        self.measured = 0
        #: How many times as fast what drafts is, and whether texts were written in each measurement.
        self.drafted: dict[str, float] = {}
        self.wrote: list[bool] = []
        self.stop_after = 10**9
        self.run_child = trials.run_child
        self.error: BaseException = KeyboardInterrupt()

    def __call__(self, name: str, request: Any, *, handlers: Any = None, **more: Any) -> Any:
        if "contexts" not in request:
            # A process of its own is for what touches devices.
            alone = not request["devices"]
            return planning_process.measure(NOBODY, request) if alone else self.run_child(name, request, **more)
        if request["logits"] is not None:
            rows = np.zeros((2, 5), np.float16)
            write_captured(request["logits"], Captured(rows, np.zeros(2, np.int32), np.zeros((1, 3), np.int32)))
            handlers["measured"](1, {"number": 0, "seconds": 0.1})
            return None
        for number, (context, drafts) in enumerate(zip(request["contexts"], request["speculations"], strict=True)):
            if self.measured >= self.stop_after:
                raise self.error
            self.measured += 1
            handlers["begins"](1, {"number": number})
            speed = self.speed(request["model_params"], context) * float(np.exp(self.random.normal(0, 0.01)))
            self.wrote.append(request["writes"])
            speed *= 1.0 if drafts is None else self.drafted.get(drafts["kind"], 0.9)
            speeds = {"prompt": speed, "decode": speed, "batch": speed}
            handlers["measured"](1, {"number": number, "seconds": 0.1, "speeds": speeds, "memory": {"Host": 1}})
        return None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """On which short micro-batches and weights that are read are faster."""

    def speed(model: Mapping[str, Any], context: Mapping[str, Any]) -> float:
        return (2.0 if context.get("n_ubatch") == 128 else 1.0) * (1.5 if model.get("load_mode") == "NONE" else 1.0)

    made = Machine(speed)
    monkeypatch.setattr(trials, "run_child", made)
    return made


def test_a_search_that_measures(path: Path) -> None:
    seen: list[float] = []
    found = moebind.tune(
        path, **{**QUICK, "progress": lambda fraction: seen.append(fraction)}, dimensions=["flash attention", "numa"]
    )
    assert [step.dimension for step in found.steps[:2]] == ["flash attention", "numa"]
    assert found.complete
    assert len(found.trials) >= 2
    assert all(trial.failure is None and trial.speeds["decode"] > 0 for trial in found.trials)
    assert seen[-1] == 1.0
    assert seen == sorted(seen)
    with Model.load_from_file(path, found.model_params) as model, model.new_context(found.context_params) as context:
        assert context.n_ctx == 256
    assert saved.find(path, saved.conditions([])).path is not None
    assert Tuning.load(str(saved.find(path, saved.conditions([])).path)) == found


def test_what_is_faster_is_kept(path: Path, machine: Machine) -> None:
    found = moebind.tune(path, **QUICK, dimensions=["micro-batch", "load mode", "affinity"])
    assert {step.name for step in found.kept} == {"n_ubatch 128", "read into memory"}
    assert found.context_params.n_ubatch == 128
    assert found.model_params.load_mode == moebind.LoadMode.NONE
    assert found.total is not None
    assert found.total.gain == pytest.approx(3.0, rel=0.05)
    assert set(found.agreements) == {"n_ubatch 128", "read into memory"}
    assert "3.0" in str(found)
    assert found.conditions["build"]["llama_cpp"] == moebind.llama_cpp_version


@pytest.mark.parametrize("kind", ["ngram-simple", "draft-mtp", "draft-simple"])
def test_what_drafts_best_is_kept(tiny_path: MakeTiny, machine: Machine, kind: str) -> None:
    path = tiny_path(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4)
    draft = tiny_path(n_layer=1)
    machine.drafted = {kind: 2.0}
    found = moebind.tune(path, **QUICK, dimensions=["micro-batch", "speculation"], draft=draft)
    assert found.speculation is not None
    assert found.speculation.kind == kind
    assert found.speculation.draft == (str(draft) if kind == "draft-simple" else None)
    assert found.model_params.load_mtp == (kind == "draft-mtp")
    assert found.total is not None
    assert found.total.gain == pytest.approx(4.0, rel=0.05)  # and micro-batches of 128
    last = [wrote for wrote, trial in zip(machine.wrote, found.trials, strict=True) if trial.purpose[:3] == "all"]
    assert all(last)
    assert not all(machine.wrote)
    assert Tuning.load(str(saved.find(path, saved.conditions([])).path)) == found
    with Model.load_from_file(path, found.model_params) as model, model.new_context(found.context_params) as context:
        with found.speculation.opened(context) as speculative:
            assert context.generate("the cat", max_tokens=4, speculative=speculative).complete().usage


def test_defaults_are_kept_where_nothing_is_faster(path: Path, machine: Machine) -> None:
    machine.speed = lambda model, context: 1.0
    found = moebind.tune(path, **QUICK, dimensions=["micro-batch", "load mode"])
    assert found.kept == ()
    assert found.total is None
    assert found.context_params == SMALL.with_n_ctx(256)
    assert found.model_params == ModelParams(n_gpu_layers=0)


def test_what_the_caller_sets_is_kept(path: Path, machine: Machine) -> None:
    given = {**QUICK, "context_params": SMALL.with_n_ubatch(64)}
    found = moebind.tune(path, **given, model_params=ModelParams().with_use_mmap(True), dimensions=["micro-batch"])
    assert found.steps[0].why == "n_ubatch: as you set it"
    assert found.context_params.n_ubatch == 64


def test_several_sequences_have_room_for_each(path: Path, machine: Machine) -> None:
    found = moebind.tune(path, **QUICK, goal="batch", n_sequences=3, dimensions=["micro-batch"])
    assert (found.context_params.n_seq_max, found.context_params.n_ctx) == (3, 3 * 256)


@pytest.mark.parametrize("after", [0, 1, 5, 12])
def test_it_goes_on_where_it_was_stopped(path: Path, machine: Machine, after: int, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {**QUICK, "dimensions": ["micro-batch", "load mode"], "journal": tmp_path / "journal"}
    machine.stop_after = after
    with pytest.raises(KeyboardInterrupt, match=r"interrupted: what was measured is in .*journal: resume=True goes on"):
        moebind.tune(path, **arguments)
    machine.stop_after = 10**9
    found = moebind.tune(path, **arguments, resume=True)
    assert found.context_params.n_ubatch == 128
    before = machine.measured
    again = moebind.tune(path, **arguments, resume=True)
    assert machine.measured == before  # all of it was known
    assert (again.steps, again.total, again.trials) == (found.steps, found.total, found.trials)


def test_another_search_is_not_resumed(path: Path, machine: Machine, tiny_path: MakeTiny, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"journal": tmp_path / "journal"}
    moebind.tune(path, **QUICK, dimensions=["micro-batch"], **arguments)
    other = tiny_path(n_expert=4, n_layer=2)
    for file, change, said in (
        (other, {}, ": model differs"),
        (path, {"goal": "long-prompt"}, ": goal differs"),
        (path, {"context_params": SMALL.with_n_ctx(512)}, ": asked differs"),
        (path, {"prompts": ["another text"]}, ": prompts differs"),
    ):
        with pytest.raises(ValueError, match=said):
            moebind.tune(file, **{**QUICK, **change}, dimensions=["micro-batch"], resume=True, **arguments)
    with pytest.raises(ValueError, match=": dimensions differs"):
        moebind.tune(path, **QUICK, dimensions=["threads"], resume=True, **arguments)


def test_without_save_nothing_is_kept(path: Path, machine: Machine) -> None:
    moebind.tune(path, **QUICK, dimensions=["micro-batch"], save=False)
    assert not os.path.exists(saved.folder())
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        moebind.tune(path, **QUICK, dimensions=["micro-batch"], save=False, resume=True)


def test_an_earlier_result_stays_where_there_was_no_time(path: Path, machine: Machine) -> None:
    moebind.tune(path, **QUICK, dimensions=["micro-batch"])
    [target] = [each for each in Path(saved.folder()).rglob("*") if each.suffix == ".json"]
    before = target.read_bytes()
    moebind.tune(path, **QUICK, dimensions=["micro-batch"], minutes=0)
    assert target.read_bytes() == before
    target.unlink()  # and there may be one of another build, which is the newest then
    moebind.tune(path, **QUICK, dimensions=["micro-batch"], minutes=0)
    assert not target.exists()


def timed(machine: Machine, monkeypatch: pytest.MonkeyPatch, takes: Callable[[], float]) -> Callable[[], float]:
    """The clock of a machine whose measurements take so long, and nothing else does; it begins at 0."""
    now, speed = 0.0, machine.speed
    monkeypatch.setattr(trials.time, "monotonic", lambda: now)

    def slow(model: Mapping[str, Any], context: Mapping[str, Any]) -> float:
        nonlocal now
        now += takes()
        return speed(model, context)

    machine.speed = slow
    return lambda: now


def test_a_search_that_compared_nothing_says_so_and_is_not_kept(
    path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first measurement seems to leave time for all of it.
    timed(machine, monkeypatch, lambda: 1.0 if machine.measured == 1 else 50.0)
    found = moebind.tune(path, **QUICK, dimensions=["micro-batch"], minutes=2)
    assert len(found.trials) > 1
    assert (found.needs, found.complete, found.total, found.steps[0].name) == (None, False, None, "")
    said = found.explanation.splitlines()
    assert said[1] == "There was no time to compare anything with the defaults: they are kept."
    assert said[-1] == "There was no time for all of it: resume=True goes on."
    assert not [each for each in Path(saved.folder()).rglob("*") if each.suffix == ".json"]
    again = moebind.tune(path, **QUICK, dimensions=["micro-batch"], resume=True)
    assert again.trials[: len(found.trials)] == found.trials
    assert again.kept
    assert [each for each in Path(saved.folder()).rglob("*") if each.suffix == ".json"]


def test_where_there_is_nothing_to_compare_that_is_a_result(path: Path, machine: Machine) -> None:
    given = {**QUICK, "context_params": SMALL.with_n_ubatch(64)}
    found = moebind.tune(path, **given, dimensions=["micro-batch"])
    assert found.complete
    assert found.explanation.splitlines()[1] == "There was nothing to compare with the defaults: they are kept."
    assert [each for each in Path(saved.folder()).rglob("*") if each.suffix == ".json"]


def test_the_time_is_kept_to(path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    found = moebind.tune(path, **{**QUICK, "progress": True}, minutes=0)
    told = f"{', '.join(step.dimension for step in found.steps)}: there was no time for it"
    assert capsys.readouterr().err == ""  # the result says it
    assert str(found).splitlines()[0] == told
    assert len(found.steps) > 3
    assert not found.complete
    assert not found.trials
    assert {step.why for step in found.steps} == {"there was no time for it"}
    assert found.needs is None
    said = found.explanation.splitlines()
    assert said[1] == "Nothing was measured: the defaults are kept."
    assert said[-1] == "There was no time for a single measurement: give more minutes; resume=True goes on."


def test_too_few_minutes_are_known_after_two_measurements(
    path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = timed(machine, monkeypatch, lambda: 6.0)
    found = moebind.tune(path, **QUICK, minutes=1)
    assert machine.measured == 2
    assert not found.complete
    assert found.needs is not None
    assert 60 < found.needs < 1000
    assert "There was less time than a single comparison of this model takes, about" in found.explanation
    again = moebind.tune(path, **QUICK, minutes=6 * found.needs / 60, resume=True)
    assert again.needs is None
    assert len(found.trials) == 2
    assert again.trials[:2] == found.trials
    assert machine.measured == len(again.trials)
    assert {step.name for step in again.kept} >= {"n_ubatch 128"}
    assert now() <= 6.0 + 6 * found.needs + 12.0


def test_a_trial_that_dies_is_a_row(path: Path, machine: Machine) -> None:
    def speed(model: Mapping[str, Any], context: Mapping[str, Any]) -> float:
        if context.get("n_ubatch") == 128:
            raise FailedError("the process was ended by SIGKILL")
        return 1.0

    machine.speed = speed
    found = moebind.tune(path, **QUICK, dimensions=["micro-batch"])
    assert found.steps[0].why == "it failed: the process was ended by SIGKILL"
    assert [trial.failure for trial in found.trials if trial.failure] == ["the process was ended by SIGKILL"]
    assert "1 of which failed" in found.explanation


def test_defaults_that_cannot_be_measured_are_an_error(path: Path, machine: Machine) -> None:
    def speed(model: Mapping[str, Any], context: Mapping[str, Any]) -> float:
        raise FailedError("the process was ended by SIGILL")

    machine.speed = speed
    with pytest.raises(MoebindError, match="the defaults could not be measured: the process was ended by SIGILL"):
        moebind.tune(path, **QUICK, dimensions=["micro-batch"])


def test_progress_can_stop_it(path: Path, machine: Machine) -> None:
    with pytest.raises(MoebindError, match="stopped the search"):
        moebind.tune(path, **{**QUICK, "progress": lambda fraction: False}, dimensions=["micro-batch"])


def test_no_trial_takes_more_memory_than_it_may(tiny_path: MakeTiny, machine: Machine, device: Device) -> None:
    # Half of the experts have room; the device is faster.
    path = tiny_path(n_expert=8, n_embd=256, n_head=4, n_head_kv=2, n_ff=384, n_layer=6)
    on_device: list[int] = []

    def speed(model: Mapping[str, Any], context: Mapping[str, Any]) -> float:
        params = ModelParams.from_dict({name: each for name, each in model.items() if name != "devices"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of small caches
            plan = moebind.plan(path, params, ContextParams.from_dict(context), devices=[device])
        on_device.append(plan.devices[0].total if len(plan.devices) > 1 else 0)
        return 1.0 + on_device[-1] / 1e8

    machine.speed = speed
    budget = moebind.plan(path, ModelParams(), SMALL, devices=[device]).devices[0].total // 2
    arguments = {**QUICK, "devices": ["1GiB"], "memory": budget}
    found = moebind.tune(path, **arguments, dimensions=["placement", "expert cache"])
    # What is measured here is on a worker, and planned for one, as tune does.
    assert max(on_device) <= budget
    assert len(set(on_device)) > 3
    assert any(step.refused for step in found.steps)


def test_what_does_not_fit_at_all_is_an_error(path: Path) -> None:
    with pytest.raises(FitError, match="does not fit"):
        moebind.tune(path, **{**QUICK, "devices": ["64MiB"]}, memory={"RPC0": "8KiB", "Host": "16KiB"})


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"goal": "speed"}, ValueError, "goal is 'speed'; it takes"),
        ({"minutes": -1}, ValueError, "minutes is -1"),
        ({"minutes": "ten"}, TypeError, "minutes"),
        ({"dimensions": ["colour"]}, ValueError, "dimensions has 'colour'; it takes placement, threads"),
        ({"dimensions": "threads"}, TypeError, r"it takes a list, such as \['placement', 'threads'\]"),
        ({"dimensions": []}, ValueError, "at least one name"),
        ({"dimensions": ["numa", "numa"]}, ValueError, "each once"),
        ({"dimensions": ["cache types"]}, ValueError, "it takes kv_types=True besides"),
        ({"n_prompt": 400}, ValueError, "make n_ctx larger, or n_prompt smaller"),
        ({"model_params": SMALL}, TypeError, "model_params"),
        ({"model_params": ModelParams(vocab_only=True)}, ValueError, "such a model cannot compute"),
        ({"model_params": ModelParams(devices=())}, ValueError, "give them as devices"),
        ({"model_params": ModelParams(progress_callback=True)}, ValueError, "leave it out"),
        ({"context_params": ModelParams()}, TypeError, "context_params"),
        ({"context_params": SMALL.with_embeddings(True)}, ValueError, "has no logits"),
        ({"devices": ["CUDA99"]}, ValueError, r"devices\[0\] is 'CUDA99'"),
        ({"devices": "loopback"}, TypeError, "it takes a list"),
        ({"memory": "much"}, ValueError, "memory is 'much'"),
        ({"prompts": []}, ValueError, "prompts is empty"),
        ({"kl_max": -1}, ValueError, "kl_max is -1"),
        ({"timeout": 0}, ValueError, "timeout is 0"),
        ({"worker_threads": 0}, ValueError, "worker_threads is 0"),
        ({"resume": "yes"}, TypeError, "resume"),
        ({"kv_types": 3}, TypeError, "kv_types"),
        ({"draft": 3}, TypeError, "draft"),
        ({"draft": "a.gguf", "dimensions": ["threads"]}, ValueError, "draft is given, and dimensions lacks"),
        ({"draft": "none.gguf"}, ModelNotFoundError, "none.gguf"),
        ({"progress": 3}, TypeError, "progress"),
        ({"n_gpu_layers": 3}, TypeError, "model_params"),
    ],
)
def test_wrong_arguments_are_refused(path: Path, change: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        moebind.tune(path, **{**QUICK, **change})
    assert not os.path.exists(saved.folder()) or not os.listdir(saved.folder())


def test_the_file_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        moebind.tune(tmp_path / "none.gguf", **QUICK)


def test_every_answer_is_in_the_journal(path: Path, machine: Machine, tmp_path: Path) -> None:
    found = moebind.tune(path, **QUICK, dimensions=["micro-batch"], journal=tmp_path / "journal")
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text(encoding="utf-8").splitlines()]
    rounds = [line for line in lines[1:] if line["question"]["what"] == "round"]
    names = itertools.chain.from_iterable([name for name, _ in each["question"]["subjects"]] for each in rounds)
    assert list(names) == [trial.name for trial in found.trials]
