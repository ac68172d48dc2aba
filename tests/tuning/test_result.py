"""Results: as Python, as options, as a preset, in files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from results import CONTEXT, MODEL, STEPS, TOTAL, made_up

import moebind
from moebind import ContextParams, Model, Tuning
from moebind.placement.fit import Fit
from moebind.server.extra import option_names
from moebind.tuning.configuration import MIN_BATCH, Process
from moebind.tuning.result import KEY
from moebind.tuning.speculation import Speculation

MakeTiny = Callable[..., Path]
PROCESS = Process({MIN_BATCH: "128"}, (min(os.sched_getaffinity(0)),))


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def test_it_is_the_same_after_a_file(path: Path, tmp_path: Path) -> None:
    drafts = Speculation("draft-mtp", n_max=3)
    over = made_up(path).trials
    for found in (
        made_up(path),
        made_up(path, process=PROCESS, total=None, complete=False, needs=12.5, speculation=drafts),
        made_up(path, trials=tuple(replace(each, unplanned={"Host": 7}) for each in over)),
    ):
        found.save(tmp_path / "tuned.json")
        assert Tuning.load(tmp_path / "tuned.json") == found


def test_a_fit_reads_the_parameters(path: Path, tmp_path: Path) -> None:
    made_up(path).save(tmp_path / "tuned.json")
    fit = Fit.load(tmp_path / "tuned.json")
    assert (fit.model_params, fit.context_params) == (MODEL, CONTEXT)


def test_a_fit_is_no_result(path: Path, tmp_path: Path) -> None:
    moebind.fit(path, n_ctx=256, devices=[]).save(tmp_path / "fit.json")
    with pytest.raises(ValueError, match="no result of moebind.tune"):
        Tuning.load(tmp_path / "fit.json")


@pytest.mark.parametrize("lost", ["goal", "process", "start", "steps", "total", "trials", "agreements", "complete"])
def test_damaged_files_are_refused(path: Path, tmp_path: Path, lost: str) -> None:
    fields: Any = json.loads(json.dumps(made_up(path).to_dict()))
    del fields[KEY][lost]
    (tmp_path / "tuned.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=f"is damaged: '{lost}'"):
        Tuning.load(tmp_path / "tuned.json")


def test_a_model_is_not_written_over(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is a model"):
        made_up(path).save(path)
    assert path.read_bytes() == before


def test_the_lines_of_python_run(path: Path) -> None:
    found = made_up(path, process=PROCESS)
    code = found.python + "\nprint(context.n_ubatch, context.n_threads, os.sched_getaffinity(0), os.environ)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"128 1 {{{min(os.sched_getaffinity(0))}}}")
    assert f"'{MIN_BATCH}': '128'" in done.stdout


@pytest.mark.parametrize(
    ("process", "kind"),
    [
        (Process(), None),
        (PROCESS, None),
        (Process(numa="DISTRIBUTE"), None),
        (Process(), "ngram-mod"),
        (Process(cpus=PROCESS.cpus), "a draft"),
    ],
)
def test_the_lines_of_python_import_what_they_use(path: Path, process: Process, kind: str | None) -> None:
    pytest.importorskip("ruff")
    drafts = {"ngram-mod": Speculation(kind), "a draft": Speculation(None, str(path), 1)}
    lines = made_up(path, process=process, speculation=drafts.get(str(kind))).python
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--quiet", "--select", "F,I001", "-"]
    done = subprocess.run(ruff, input=f"{lines}\n", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("n_ctx", [ContextParams().n_ctx, 256])
def test_the_lines_of_python_say_how_long_the_context_is(path: Path, n_ctx: int) -> None:
    lines = made_up(path, context_params=CONTEXT.with_n_ctx(n_ctx)).python.splitlines()
    [line] = [line for line in lines if line.startswith("context_params")]
    assert line.startswith(f"context_params = ContextParams.from_dict({{'n_ctx': {n_ctx}, ")


def test_options(path: Path) -> None:
    options = made_up(path).options
    assert options[options.index("-ub") + 1] == "128"
    assert options[options.index("-t") + 1] == "1"
    assert "--no-mmap" in options or "-lm" in options or "--load-mode" in options


def test_a_preset(path: Path) -> None:
    written = made_up(path).preset("small").splitlines()
    assert written[2] == "[small]"
    assert f"model = {path}" in written
    assert "ubatch-size = 128" in written
    assert "threads = 1" in written
    assert made_up(path).preset().splitlines()[2] == f"[{path.stem}]"
    assert ";" not in made_up(path).preset()


def test_a_preset_of_a_search_on_a_worker_says_what_is_to_be_added(path: Path) -> None:
    found = made_up(path)
    far = made_up(path, conditions={**found.conditions, "devices": ["a worker process of 300MiB"]})
    said = "; Measured with a worker process of 300MiB. To compute there, add rpc = HOST:PORT and device = RPC0\n"
    plain = [line for line in found.preset().splitlines(keepends=True) if not line.startswith("device = ")]
    assert far.preset() == "".join(plain) + said
    near = MODEL.with_n_gpu_layers(0).with_devices(())
    assert "device = none" in made_up(path, model_params=near, conditions=far.conditions).preset()


def test_a_preset_says_what_it_cannot_set(path: Path) -> None:
    process = Process({MIN_BATCH: "128"}, (0, 2), "DISTRIBUTE")
    plain, written = made_up(path).preset().splitlines(), made_up(path, process=process).preset().splitlines()
    assert written == [
        *plain,
        "; For the whole of llama-server, which options of a model do not set:",
        f"; {MIN_BATCH}=128 in its environment",
        "; taskset -c 0,2 before the command",
        "; --numa distribute among its arguments",
    ]


def test_a_preset_drafts(path: Path) -> None:
    plain = made_up(path).preset().splitlines()
    for speculation, added in (
        (Speculation("ngram-mod"), ["spec-type = ngram-mod"]),
        (Speculation("draft-mtp", n_max=3), ["spec-type = draft-mtp", "spec-draft-n-max = 3"]),
        (
            Speculation("draft-simple", "/a/b.gguf", 1),
            ["spec-type = draft-simple", "spec-draft-model = /a/b.gguf", "spec-draft-n-max = 1"],
        ),
    ):
        ahead = MODEL.with_load_mtp(speculation.kind == "draft-mtp")
        written = made_up(path, speculation=speculation, model_params=ahead).preset().splitlines()
        assert written == [*plain, *added]
    assert {"--spec-type", "--spec-draft-model", "--spec-draft-n-max"} <= set(option_names())


def test_lines_of_python_draft(path: Path) -> None:
    lines = made_up(path, speculation=Speculation("ngram-mod")).python.splitlines()
    assert lines[-1] == "speculative = moebind.Speculative(context, kind='ngram-mod')"


def test_the_parameters_load_the_model(path: Path) -> None:
    found = made_up(path)
    with Model.load_from_file(path, found.model_params) as model, model.new_context(found.context_params) as context:
        assert context.n_ubatch == 128


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.json does not exist: Fit\.save and Tuning\.save write such"):
        Tuning.load(tmp_path / "none.json")


def test_a_picture(path: Path, tmp_path: Path) -> None:
    made_up(path).plot(tmp_path / "steps.svg")
    drawn = (tmp_path / "steps.svg").read_text(encoding="utf-8")
    assert "n_ubatch 128" in drawn or "<use" in drawn
    with pytest.raises(ValueError, match="steps.gif2"):
        made_up(path).plot(tmp_path / "steps.gif2")
    with pytest.raises(ValueError, match="nothing to draw"):
        made_up(path, steps=STEPS[:1], total=None).plot(tmp_path / "none.svg")


def test_notebooks_show_it(path: Path) -> None:
    shown = made_up(path)._repr_html_()
    assert "data:image/svg+xml" in shown
    assert "n_ubatch 128" in shown
    assert "<img" not in made_up(path, steps=STEPS[:1], total=None)._repr_html_()


def test_what_was_kept(path: Path) -> None:
    assert [step.name for step in made_up(path).kept] == ["n_ubatch 128", "read into memory"]
    lost = replace(TOTAL, kept=False, why="no faster beyond the noise")
    assert made_up(path, total=lost).kept == ()
    assert made_up(path, total=None).kept == ()


def test_it_is_set_for_the_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MIN_BATCH, raising=False)
    before = os.sched_getaffinity(0)
    try:
        made_up(path, process=PROCESS).apply()
        assert os.environ[MIN_BATCH] == "128"
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)
        os.environ.pop(MIN_BATCH, None)


def test_threads_that_are_the_default_are_left_out(path: Path) -> None:
    assert made_up(path, context_params=ContextParams()).to_dict()["context_params"] == {}
