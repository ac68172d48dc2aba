"""The offload benchmark: real placements of tiny models, on a worker process, each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny
from hub_server import Hub, cached

import moebind
from conftest import SMALL
from moebind import Device, ModelNotFoundError, ModelParams, MoebindError, SplitMode
from moebind.bench import OffloadReport, Placement, default_placements, offload

MakeTiny = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("no_child_is_left")
#: Short, on one thread, and on a device that every machine has.
QUICK = {
    "context_params": SMALL,
    "n_prompt": 24,
    "n_generate": 4,
    "warmup": 0,
    "prompts": ["the cat is in it", "a to of"],
    "devices": ["loopback"],
    "progress": False,
}


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def report(path: Path, folder: Path) -> OffloadReport:
    return offload(path, output=folder, **QUICK)  # type: ignore[arg-type]


def test_three_placements(report: OffloadReport) -> None:
    assert [row.name for row in report] == ["all on the device", "n_cpu_moe(1)", "experts in host memory"]
    assert report.ok
    assert len(report) == 3
    assert report.reference == "all on the device"
    for row in report:
        assert len(row.runs) == 3
        for run in row.runs:
            assert (run.n_prompt, run.n_generate, len(run.stamps)) == (24, 4, 5)
            assert 0 < run.prompt < run.first_token == run.stamps[0]
            assert all(interval > 0 for interval in run.intervals)
        assert row.prompt is not None
        assert row.prompt.values == tuple(24 / run.prompt for run in row.runs)
        assert row.decode is not None
        assert row.decode.mean == pytest.approx(np.mean([run.decode_speed for run in row.runs]))
        assert row.decode.std == pytest.approx(np.std([run.decode_speed for run in row.runs], ddof=1))
        assert row.token_quantiles[0.0] <= row.token_quantiles[0.5] <= row.token_quantiles[1.0]


def test_memory_three_times(report: OffloadReport) -> None:
    for row in report:
        assert row.predicted is not None
        assert row.allocated is not None
        assert row.worst_error is not None
        assert row.worst_error <= 4096
        assert [device.name for device in row.allocated.devices] == [device.name for device in row.predicted.devices]
        device = row.allocated.devices[0]
        assert row.before is not None
        assert row.held is not None
        assert set(row.held.workers) == set(row.before.workers) == {device.name}
        worker = row.held.workers[device.name]
        assert worker.anonymous + worker.file + worker.shared == worker.total <= worker.peak
        assert row.held.process is not None
        assert row.before.process is not None
        assert row.held.process.total > row.before.process.total
        assert row.nvml or row.held.cards is not None
    saved = report.reduction("experts in host memory")
    assert saved is not None
    assert 0 < (report.reduction("n_cpu_moe(1)") or 0) < saved < 1


def test_placements_of_the_same_weights_agree(report: OffloadReport) -> None:
    for row in report:
        assert row.agreement is not None
        assert row.agreement.n_prompts == row.agreement.same_continuations == 2
        assert row.agreement.same_top == row.agreement.same_greedy == 1.0
        # F32 weights, computed by the same kernels in another process.
        assert 0 <= row.agreement.mean_kl <= row.agreement.max_kl < 1e-6
        assert row.agreement.n_positions > 8


def test_a_model_that_computes_something_else_does_not_agree(report: OffloadReport, path: Path, folder: Path) -> None:
    other = Placement("one expert", ModelParams().with_kv_override("llama.expert_used_count", 1))
    compared = offload(path, ["all", other], output=folder, **QUICK)  # type: ignore[arg-type]
    found = compared["one expert"].agreement
    assert found is not None
    assert found.mean_kl > 1e-3
    assert found.max_kl > found.mean_kl
    assert found.same_top < 1.0
    assert found.same_continuations < 2
    assert compared["all on the device"].runs == report["all on the device"].runs


def test_it_says_what_it_was_measured_with(report: OffloadReport, path: Path) -> None:
    conditions = report.environment
    [file] = conditions["files"]
    assert file == {
        "name": path.name,
        "size": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert conditions["build"]["commit"] == moebind.ffi.string(moebind.lib.ggml_commit()).decode()
    assert conditions["machine"]["processor"]
    assert "devices=['loopback']" in conditions["command"]
    assert report.settings["n_generate"] == 4
    # What the command says is a call that makes it again.
    call = compile(conditions["command"], "command", "eval")
    assert "offload" in call.co_names


def test_nothing_is_measured_twice(report: OffloadReport, path: Path, folder: Path) -> None:
    again = offload(path, ["cpu-moe", "n-cpu-moe=2", "all"], output=folder, **QUICK)  # type: ignore[arg-type]
    assert again["all on the device"].runs == report["all on the device"].runs
    assert again["experts in host memory"].date == report["experts in host memory"].date
    assert again["n_cpu_moe(2)"].ok
    # They are compared with the one that is first now.
    assert again.reference == "experts in host memory"
    assert again["all on the device"].agreement is not None
    assert OffloadReport.load(folder) == again
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_a_resumed_report_says_when_and_how_its_rows_were_measured(path: Path, tmp_path: Path) -> None:
    first = offload(path, ["all"], output=tmp_path, **QUICK)  # type: ignore[arg-type]
    [measured] = first.rows
    assert measured.load_average == first.environment["load_average"][0]
    # As if it were long ago, on a busy machine.
    [kept] = tmp_path.glob("placement-*.json")
    data = json.loads(kept.read_text(encoding="utf-8"))
    data["date"] = "2020-02-02T02:02:02+00:00"
    data["result"]["row"]["load_average"] = 77.25
    kept.write_text(json.dumps(data), encoding="utf-8")
    resumed = offload(path, ["all", "cpu-moe"], output=tmp_path, **QUICK)  # type: ignore[arg-type]
    assert resumed.rows[0].runs == measured.runs
    printed = str(resumed)
    assert f"date: 2020-02-02T02:02:02+00:00 to {resumed.rows[1].date}" in printed
    assert f"load at the start: {resumed.rows[1].load_average:.2f} to 77.25" in printed


@pytest.mark.parametrize("damage", ["", "{", '{"form": 1}', "row", "runs", "form"])
def test_what_is_kept_of_a_placement_and_damaged_is_measured_again(path: Path, tmp_path: Path, damage: str) -> None:
    first = offload(path, ["all"], output=tmp_path, **QUICK).rows[0]  # type: ignore[arg-type]
    [kept] = tmp_path.glob("placement-*.json")
    data = json.loads(kept.read_text(encoding="utf-8"))
    if damage == "row":
        del data["result"]["row"]
    elif damage == "runs":
        data["result"]["row"]["runs"] = 3
    elif damage == "form":
        data["form"] = 99
    kept.write_text(damage if damage[:1] in {"", "{"} else json.dumps(data), encoding="utf-8")
    again = offload(path, ["all"], output=tmp_path, **QUICK).rows[0]  # type: ignore[arg-type]
    assert again.ok
    assert again.runs != first.runs
    assert offload(path, ["all"], output=tmp_path, **QUICK).rows[0].runs == again.runs  # type: ignore[arg-type]


def test_other_settings_and_another_file_are_measured_again(tmp_path: Path) -> None:
    model, out = tmp_path / "m.gguf", tmp_path / "out.json"
    tiny.write(model, tiny.Shape(n_expert=4))
    quick = {**QUICK, "output": out}
    first = offload(model, ["all"], **quick)  # type: ignore[arg-type]
    assert OffloadReport.load(out) == first
    assert (tmp_path / "out.files").is_dir()
    longer = offload(model, ["all"], **{**quick, "n_generate": 5})  # type: ignore[arg-type]
    assert longer.rows[0].key != first.rows[0].key
    assert longer.rows[0].runs[0].n_generate == 5
    # A new time of change is only looked at again; new weights are another file, though the size is the same.
    os.utime(model, ns=(1, 1))
    same = offload(model, ["all"], **{**quick, "n_generate": 5})  # type: ignore[arg-type]
    assert same.rows[0].runs == longer.rows[0].runs
    size = model.stat().st_size
    tiny.write(model, tiny.Shape(n_expert=4, seed=2))
    assert model.stat().st_size == size
    changed = offload(model, ["all"], **{**quick, "n_generate": 5})  # type: ignore[arg-type]
    assert changed.rows[0].key != longer.rows[0].key
    assert changed.rows[0].runs != longer.rows[0].runs


def test_lost_logits_are_made_again(report: OffloadReport, path: Path, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / f"logits-{report['all on the device'].key[:16]}.npz").write_bytes(b"PK\x03\x04 not any more")
    again = offload(path, ["all", "cpu-moe"], output=copy, **QUICK)  # type: ignore[arg-type]
    assert again["all on the device"].runs != report["all on the device"].runs
    assert again["experts in host memory"].runs == report["experts in host memory"].runs
    assert again["experts in host memory"].agreement is not None


def test_a_killed_process_is_a_row_that_says_so(path: Path, tmp_path: Path) -> None:
    fractions: list[float] = []
    others = psutil.Process().children()

    def kill_the_first(fraction: float) -> None:
        fractions.append(fraction)
        if 0 < fraction < 0.25:  # it has loaded
            [child] = [each for each in psutil.Process().children() if each not in others]
            child.send_signal(signal.SIGKILL)

    report = offload(path, ["all", "cpu-moe"], output=tmp_path, **{**QUICK, "progress": kill_the_first})  # type: ignore[arg-type]
    assert not report.ok
    assert "SIGKILL" in str(report["all on the device"].failure)
    assert report["all on the device"].decode is None
    assert report["experts in host memory"].ok
    assert report.reference == "experts in host memory"
    assert report.reduction("all on the device") is None
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    # What failed is tried again, what did not is kept.
    again = offload(path, ["all", "cpu-moe"], output=tmp_path, **QUICK)  # type: ignore[arg-type]
    assert again.ok
    assert again["experts in host memory"].runs == report["experts in host memory"].runs


def test_stopping_keeps_what_was_finished(path: Path, tmp_path: Path) -> None:
    with pytest.raises(MoebindError, match="stopped"):
        offload(path, ["all", "cpu-moe"], output=tmp_path, **{**QUICK, "progress": lambda done: done < 0.6})  # type: ignore[arg-type]
    assert [row.ok for row in OffloadReport.load(tmp_path)] == [True]


def test_what_cannot_be_placed_is_a_row(path: Path) -> None:
    placements = ["ot=no_such_tensor=CPU", Placement("elsewhere", ModelParams().with_tensor_override("ffn", "CUDA9"))]
    report = offload(path, [*placements, "fit=900KiB"], **QUICK)  # type: ignore[arg-type]
    assert "no_such_tensor" in str(report.rows[0].failure)
    assert str(report.rows[0].failure).startswith("ModelLoadError")
    assert "CUDA9" in str(report.rows[1].failure)
    fitted = report.rows[2]
    assert fitted.allocated is not None
    assert fitted.allocated.device_bytes <= 900 * 1024
    assert fitted.model_params["tensor_overrides"]


def test_too_slow(path: Path) -> None:
    report = offload(path, ["all"], timeout=0.01, **QUICK)  # type: ignore[arg-type]
    assert "longer than the 0.01 seconds" in str(report.rows[0].failure)
    assert report.reference is None


@pytest.mark.parametrize("arch", ["bert", "t5"])
def test_models_that_do_not_generate(tiny_path: MakeTiny, arch: str) -> None:
    report = offload(tiny_path(arch=arch, n_head_kv=4), ["all"], **QUICK)  # type: ignore[arg-type]
    assert "does not continue texts" in str(report.rows[0].failure)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    broken = np.full((len(tiny.TOKENS), 64), np.nan, np.float32)
    path = tiny.write(tmp_path / "nan.gguf", tiny.Shape(), add={"output.weight": broken})
    report = offload(path, ["all"], **QUICK)  # type: ignore[arg-type]
    assert "not all numbers" in str(report.rows[0].failure)


def test_split_files_recurrent_models_and_our_own_device(tiny_path: MakeTiny, device: Device) -> None:
    split = offload(tiny_path(n_expert=4, split=3), ["cpu-moe"], **{**QUICK, "devices": [device]})  # type: ignore[arg-type]
    assert split.ok
    assert len(split.environment["files"]) == 3
    assert split.settings["devices"][0]["kind"] == "loopback"
    assert offload(tiny_path(arch="mamba"), ["all"], **QUICK).ok  # type: ignore[arg-type]
    both = offload(tiny_path(n_expert=4, n_layer=3), ["all"], **{**QUICK, "devices": ["loopback", "1GiB"]}).rows[0]  # type: ignore[arg-type]
    assert both.predicted is not None
    assert both.predicted.devices[1].capacity == 2**30
    assert both.held is not None
    assert len(both.held.workers) == 2


def test_files_of_the_hub_are_downloaded_when_nothing_else_is_wrong(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_prompt"):
        offload("hf://someone/tiny/F32", **{**QUICK, "n_prompt": 0})  # type: ignore[arg-type]
    assert cached(tmp_path) == []
    report = offload("hf://someone/tiny/F32", ["cpu-moe"], **QUICK)  # type: ignore[arg-type]
    assert report.ok
    assert len(report.environment["files"]) == 3


def test_default_placements(tiny_path: MakeTiny, path: Path) -> None:
    assert [each.name for each in default_placements(path)] == [
        "all on the device",
        "n_cpu_moe(1)",
        "experts in host memory",
    ]
    assert [each.name for each in default_placements(path, n_cpu_moe=2)][1] == "n_cpu_moe(2)"
    assert [each.name for each in default_placements(tiny_path())] == ["all on the device", "n_gpu_layers(1)"]


BAD: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"placements": []}, ValueError, "empty"),
    ({"placements": "all"}, TypeError, "list"),
    ({"placements": [3]}, TypeError, "Placement objects"),
    ({"placements": ["all", "all"]}, ValueError, "more than once"),
    ({"placements": ["everything"]}, ValueError, "takes one of"),
    ({"repeats": 2}, ValueError, "repeats"),
    ({"repeats": 3.5}, TypeError, "repeats"),
    ({"warmup": -1}, ValueError, "warmup"),
    ({"n_prompt": 0}, ValueError, "n_prompt"),
    ({"n_prompt": 255}, ValueError, "n_ctx larger"),
    ({"n_generate": 2**40}, ValueError, "n_generate"),
    ({"prompts": "text"}, TypeError, "list of texts"),
    ({"prompts": []}, ValueError, "at least one"),
    ({"prompts": [""]}, ValueError, "empty"),
    ({"prompts": ["\ud800"]}, ValueError, "surrogate"),
    ({"prompts": [b"x"]}, TypeError, "str"),
    ({"devices": []}, ValueError, "at least one"),
    ({"devices": "loopback"}, TypeError, "list"),
    ({"devices": ["CPU"]}, ValueError, "loopback"),
    ({"devices": ["0GiB"]}, ValueError, "loopback"),
    ({"devices": [7]}, TypeError, "str"),
    ({"worker_threads": 0}, ValueError, "worker_threads"),
    ({"timeout": float("nan")}, ValueError, "timeout"),
    ({"timeout": 0}, ValueError, "timeout"),
    ({"progress": "yes"}, TypeError, "progress"),
    ({"output": ""}, ValueError, "output"),
    ({"context_params": ModelParams()}, TypeError, "ContextParams"),
    ({"context_params": SMALL.with_embeddings(True)}, ValueError, "embeddings"),
    ({"context_params": SMALL.with_abort_callback(lambda: False)}, ValueError, "abort_callback"),
    ({"placements": [Placement("x", ModelParams(progress_callback=True))]}, ValueError, "progress_callback"),
]


@pytest.mark.parametrize(("changed", "kind", "message"), BAD)
def test_bad_arguments(path: Path, changed: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        offload(path, **{**QUICK, **changed})  # type: ignore[arg-type]


def test_bad_files(tmp_path: Path, path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        offload(tmp_path / "none.gguf")
    with pytest.raises(TypeError, match="model_path"):
        offload(3)  # type: ignore[arg-type]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"mine": True}), encoding="utf-8")
    with pytest.raises(ValueError, match="not a report"):
        offload(path, output=other, **QUICK)  # type: ignore[arg-type]
    assert json.loads(other.read_text(encoding="utf-8")) == {"mine": True}
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"a file; it takes a folder, or a path that ends in \.json"):
        offload(path, output=tmp_path / "file", **QUICK)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="file"):
        offload(path, output=tmp_path / "file" / "x", **QUICK)  # type: ignore[arg-type]


def test_no_gpu_needs_a_word(path: Path) -> None:
    if any(device.type.name in {"GPU", "IGPU"} and device.backend != "RPC" for device in moebind.devices()):
        return
    with pytest.raises(ValueError, match="loopback"):
        offload(path, **{**QUICK, "devices": None})  # type: ignore[arg-type]


def test_an_rpc_server_in_use_here_cannot_be_shared(path: Path, device: Device) -> None:
    server = replace(device, name="RPC99")  # no worker of ours
    with pytest.raises(ValueError, match="one process at a time"):
        offload(path, **{**QUICK, "devices": [server]})  # type: ignore[arg-type]


def test_tensors_that_are_cut_up_are_measured_without_a_plan(path: Path) -> None:
    cut = ModelParams(split_mode=SplitMode.TENSOR)
    options = {**QUICK, "devices": ["loopback", "loopback"]}
    [row] = offload(path, [Placement("cut up", cut)], **options)  # type: ignore[arg-type]
    assert row.ok, row.failure
    assert row.predicted is None
    assert row.allocated is not None
    assert row.allocated.device_bytes > 0


def test_a_cache_of_experts(path: Path, tmp_path: Path) -> None:
    report = offload(path, ["cpu-moe", "moe-cache=1MiB"], output=tmp_path / "cached", **QUICK)  # type: ignore[arg-type]
    assert report.ok
    plain, cached = report
    assert plain.moe_cache is None
    assert cached.moe_cache is not None
    assert cached.moe_cache.hits > 0
    assert cached.allocated is not None
    assert cached.allocated.devices[0].moe_cache > 0
    assert cached.worst_error == 0
    assert cached.context_params["moe_cache_size"] == 2**20
    assert cached.agreement is not None
    assert cached.agreement.same_top == 1
    assert "cache hits" in str(report)
    again = OffloadReport.load(tmp_path / "cached")
    assert again["experts in host memory, cache of 1.0 MiB"].moe_cache == cached.moe_cache
