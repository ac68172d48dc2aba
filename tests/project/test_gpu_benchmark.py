"""benchmarks/gpu.py without a GPU: what it remembers, what it writes, and that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import GPU_TESTS
from moebind import ContextParams, FlashAttnType, GgmlType, LoadMode, ModelParams
from moebind.bench.protocol import run_child
from moebind.bench.record import FailedError

MakeTiny = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import gpu_llama_bench
import gpu_measure
import gpu_record
import gpu_report
from gpu_clock import Clock, OutOfTimeError
from gpu_record import GpuRecord

KEY = {"commit": "abc", "device": "NVIDIA Test 1", "driver": "1.0", "size": "full"}


class Time:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- what is remembered ------------------------------------------------------------------------------------------


def test_a_measurement_is_made_once(tmp_path: Path) -> None:
    record, clock = GpuRecord(tmp_path / "record", KEY), Clock(None)
    calls: list[int] = []

    def measure() -> object:
        calls.append(1)
        return {"speed": 7.5}

    for _ in range(2):
        assert gpu_record.measured(record, clock, "one", 10, measure) == {"speed": 7.5}
    again = GpuRecord(tmp_path / "record", KEY)
    assert gpu_record.measured(again, clock, "one", 10, measure) == {"speed": 7.5}
    assert len(calls) == 1


def test_a_failure_is_kept_and_tried_again_only_when_asked(tmp_path: Path) -> None:
    record, clock = GpuRecord(tmp_path / "record", KEY), Clock(None)
    results: list[object] = [RuntimeError("no luck"), 5]

    def measure() -> object:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    assert gpu_record.measured(record, clock, "one", 1, measure) is None
    assert record.find("one").failure == "RuntimeError: no luck"
    assert gpu_record.measured(record, clock, "one", 1, measure) is None
    assert gpu_record.measured(record, clock, "one", 1, measure, retry=True) == 5
    assert gpu_record.measured(record, clock, "one", 1, measure, retry=True) == 5
    assert record.find("one").failure is None


def test_ctrl_c_is_no_failure(tmp_path: Path) -> None:
    def stop() -> object:
        raise KeyboardInterrupt

    record = GpuRecord(tmp_path / "record", KEY)
    with pytest.raises(KeyboardInterrupt):
        gpu_record.measured(record, Clock(None), "one", 1, stop)
    assert not list(record)


def test_what_would_not_be_over_in_time_is_not_begun(tmp_path: Path) -> None:
    now = Time()
    record, clock = GpuRecord(tmp_path / "record", KEY), Clock(1, now)
    gpu_record.measured(record, clock, "short", 50, lambda: 1)
    now.now += 20
    with pytest.raises(OutOfTimeError, match="long takes about 50 s, and 40 are left"):
        gpu_record.measured(record, clock, "long", 50, lambda: 1)
    assert record.find("long") is None
    assert gpu_record.measured(record, clock, "short", 50, lambda: 2) == 1  # what is known takes no time


def test_other_commits_devices_and_sizes_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "record"
    GpuRecord(path, KEY).put("one", 1)
    for name in KEY:
        assert GpuRecord(path, {**KEY, name: "another"}).result("one") is None
    assert GpuRecord(path, KEY).result("one") == 1


def test_measurements_are_taken_over_from_a_report(tmp_path: Path) -> None:
    old = GpuRecord(tmp_path / "old" / "record", KEY)
    old.put("one", 1)
    old.put("two", 2)
    data, _ = gpu_report.write(old, tmp_path / "results", "old", "the command")
    new = GpuRecord(tmp_path / "new", KEY)
    new.put("two", 22)
    assert new.add_from(data) == 1
    assert (new.result("one"), new.result("two")) == (1, 22)
    other = GpuRecord(tmp_path / "other", {**KEY, "commit": "another"})
    assert other.add_from(data) == 0
    for text in ('{"rows": []}', "[]", '{"form": 1}', "{", ""):
        data.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="no record of"):
            new.add_from(data)


def test_a_report_is_what_the_record_becomes_and_what_another_begins_with(full: GpuRecord, tmp_path: Path) -> None:
    data, _ = gpu_report.write(full, tmp_path / "results", "today", "the command")
    written = json.loads(data.read_text(encoding="utf-8"))
    assert {"form", "key", "environment", "units", "command"} == set(written)
    assert set(written["units"]["demo"]) == {"date", "seconds", "result", "failure", "key"}
    other = GpuRecord(tmp_path / "other", KEY)
    assert other.add_from(data) == len(written["units"])
    assert list(other) == list(full)


def test_what_was_lost_is_measured_again_without_a_retry(tmp_path: Path) -> None:
    record = GpuRecord(tmp_path / "record", KEY)
    record.put("one", 1)
    assert gpu_record.measured(record, Clock(None), "one", 1, lambda: 2) == 1
    assert gpu_record.measured(record, Clock(None), "one", 1, lambda: 2, again=True) == 2
    assert record.result("one") == 2


# --- what is measured in other processes -------------------------------------------------------------------------


def child(what: str, **request: object) -> Any:
    return run_child("gpu_child", {"what": what, "device": "loopback", **request}, timeout=100)


def test_a_process_measures_speed(tiny_path: MakeTiny) -> None:
    placement = {"path": str(tiny_path(n_expert=4)), "model_params": {"n_gpu_layers": 1}, "context_params": {}}
    found = child("speed", **placement, n_prompt=20, n_generate=5, repeats=2)
    assert all(speed > 0 for what in ("prompt", "decode") for speed in found[what])
    assert (len(found["prompt"]), len(found["decode"])) == (2, 2)
    assert found["device_bytes"] > 0


def test_a_process_asks_for_too_much_and_goes_on(tiny_path: MakeTiny, tmp_path: Path) -> None:
    found = child("refuse", too_large=str(tmp_path / "none.gguf"), path=str(tiny_path()), leave=0)
    assert found["more than there is"].startswith("ModelNotFoundError: ")
    assert found["another process has it"] is None  # only of a card
    assert found["afterwards"]


def test_a_process_holds_memory_while_its_parent_works() -> None:
    pids: list[int] = []
    request = {"what": "hold", "device": "loopback", "leave": 2**60}  # more than there is: nothing is taken
    handlers = {"held": lambda pid, content: pids.append(os.getpgid(pid))}
    assert run_child("gpu_child", request, handlers=handlers, timeout=100) == {"held": 0}
    assert len(pids) == 1


def test_a_process_without_its_device() -> None:
    with pytest.raises(FailedError, match=r"^there is no device CUDA7; there are .*CPU"):
        run_child("gpu_child", {"what": "look", "device": "CUDA7"}, timeout=100)


# --- how llama-bench is asked ------------------------------------------------------------------------------------


def test_llama_bench_gets_the_same_placement() -> None:
    params = ModelParams(n_gpu_layers=20, load_mode=LoadMode.MMAP_MLOCK, no_host=True).with_n_cpu_moe(2)
    context = (
        ContextParams(n_ubatch=1024, op_offload=False)
        .with_flash_attn_type(FlashAttnType.DISABLED)
        .with_type_k(GgmlType.Q8_0)
    )
    options = gpu_llama_bench.llama_bench_options(params, context)
    values = dict(zip(options[::2], options[1::2], strict=True))
    assert values["-ngl"] == "20"
    assert values["-lm"] == "mmap+mlock"
    assert (values["-ub"], values["-fa"], values["-nopo"], values["--no-host"]) == ("1024", "off", "1", "1")
    assert (values["-ctk"], values["-ctv"]) == ("q8_0", "f16")
    rules = values["-ot"].split(";")
    assert rules == [f"{rule.pattern}={rule.target}" for rule in params.tensor_overrides]
    assert "-ot" not in gpu_llama_bench.llama_bench_options(ModelParams(), ContextParams())


def test_patterns_that_llama_bench_would_misread_are_refused() -> None:
    with pytest.raises(ValueError, match="a comma"):
        gpu_llama_bench.llama_bench_options(ModelParams().with_cpu_override(r"blk\.\d{1,2}\.ffn"), ContextParams())


# --- what is written ---------------------------------------------------------------------------------------------


def row(name: str, decode: float, device: int = 2**30, **fields: object) -> dict[str, Any]:
    memory = [
        {"name": "CUDA0", "model": device, "context": 0, "compute": 0},
        {"name": "Host", "model": 3 * 2**30, "context": 0, "compute": 0},
    ]
    samples = {"mean": decode, "std": 0.5, "values": [decode] * 3}
    return {
        "name": name, "failure": None, "prompt": samples, "decode": samples, "first_token": samples, "load": 4.0,
        "device_bytes": device, "device_bytes_seen": device + 400 * 2**20, "reduction": 0.94, "predicted": memory,
        "allocated": memory, "agreement": {"mean_kl": 1e-4, "same_top": 0.99}, **fields,
    }  # fmt: skip


def offload_report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    files = [{"name": "phi-3.5-moe-q4_k_m.gguf", "size": 5, "sha256": "00ff"}]
    settings = {"repeats": 3, "warmup": 1, "n_prompt": 512, "n_generate": 64}
    return {"reference": rows[0]["name"], "rows": rows, "settings": settings, "environment": {"files": files}}


@pytest.fixture
def full(tmp_path: Path) -> GpuRecord:
    record = GpuRecord(tmp_path / "record", KEY)
    ours = [
        row("all on the device", 100.0, 24 * 2**30, reduction=0.0),
        row("experts in host memory", 30.0),
        row("fit, 4 GiB", 40.0),
        row("fit, 6 GiB", 50.0),
        {"name": "fit, 8 GiB", "failure": "ModelLoadError: no | memory\nmore"},
    ]
    record.put("offload/phi", offload_report(ours))
    theirs = [row("llama.cpp's fit, 4 GiB", 38.0), row("llama.cpp's fit, 8 GiB", 60.0)]
    record.put("offload/theirs", offload_report(theirs))
    speeds = {"llama-bench": 100.0, "moebind": 99.0, "ratio": 0.99}
    record.put("pair/Phi, all on the device", {"prompt": speeds, "decode": speeds, "runs": {}})
    record.put("settings/n_ubatch 2048", {"prompt": [10.0, 20.0], "decode": [1.0], "device_bytes": 2**20})
    step = {
        "dimension": "threads",
        "name": "n_threads 4",
        "gain": 1.25,
        "low": 1.2,
        "high": 1.3,
        "kept": True,
        "why": "",
    }
    record.put("tune/chat", {"tuning": {"steps": [step], "total": {**step, "dimension": "all of it", "kept": False}}})
    record.put("refuse", {"more than there is": "ModelLoadError: x\n  cudaMalloc failed: allocating", "b": None})
    record.put("tests", {"passed": ["a", "b"], "failed": {"c": "assert 1 == 2\nmore"}, "skipped": {}})
    record.put("demo", None, failure="the process was ended by SIGABRT")
    return record


def test_the_page_has_a_table_of_everything(full: GpuRecord) -> None:
    page = gpu_report.markdown(full, "today", "the command")
    assert "| experts in host memory | 1.00 | 94.0% | 3.00 | 4.0 | 30.0 ± 0.5 | 30.0 ± 0.5 |" in page
    assert "failed: ModelLoadError: no \\| memory" in page
    assert "| experts in host memory | CUDA0 | 1024.0 | 1024.0 | 1424.0 | 400.0 |" in page
    assert "| 4 GiB | 1024.0 | 40.0 ± 0.5 | 40.0 ± 0.5 | 1024.0 | 38.0 ± 0.5 | 38.0 ± 0.5 | 1.053 |" in page
    assert "| 6 GiB | 1024.0 | 50.0 ± 0.5 | 50.0 ± 0.5 |  |  |  |  |" in page
    assert "| Phi, all on the device | 100.0 | 99.0 | 0.990 | 100.0 | 99.0 | 0.990 |" in page
    assert "| n_ubatch 2048 | 1.0 | 15.0 | 1.0 |" in page
    assert "## Tuned for chat" in page
    assert "| threads | n_threads 4 | 1.25 | 1.20 | 1.30 | yes |" in page
    assert "| more than there is | `ModelLoadError: x / cudaMalloc failed: allocating` |" in page
    assert "2 passed, 1 failed, 0 skipped." in page
    assert "| c | assert 1 == 2 |" in page
    assert "| demo | the process was ended by SIGABRT |" in page
    assert "no GPU" not in page
    for line in page.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_targets_are_judged(full: GpuRecord) -> None:
    page = gpu_report.markdown(full, "today", "the command")
    verdicts = {line.split(" | ")[0][2:]: line.split(" | ")[-1] for line in page.splitlines() if line.startswith("| ")}
    assert verdicts["experts in host memory, seen from outside"] == "yes |"
    assert verdicts["device memory saved"] == "yes |"
    assert verdicts["decode against llama-bench, the worst"] == "yes |"
    assert verdicts["decode of fit against llama.cpp's fit, the worst"] == "yes |"
    assert verdicts["plan against allocation, the worst"] == "yes |"
    slow = {"llama-bench": 100.0, "moebind": 90.0, "ratio": 0.9}
    full.put("pair/demo", {"prompt": slow, "decode": slow, "runs": {}})
    full.put("offload/theirs", offload_report([row("llama.cpp's fit, 6 GiB", 60.0)]))
    page = gpu_report.markdown(full, "today", "the command")
    assert "| decode against llama-bench, the worst | at least 0.98 | 0.900 (demo) | **no** |" in page
    assert "| decode of fit against llama.cpp's fit, the worst | at least 1 | 0.833 (6 GiB) | **no** |" in page


def test_a_large_share_of_few_bytes_is_no_error_of_a_plan(full: GpuRecord) -> None:
    report = full.result("offload/phi")
    report["rows"][1]["predicted"] = [{**device, "context": 2**20} for device in report["rows"][1]["predicted"]]
    full.put("offload/phi", report)
    assert "| 1 % or 4 MiB | 1.00 MiB" in gpu_report.markdown(full, "today", "the command")
    report["rows"][1]["predicted"][0]["model"] += 200 * 2**20
    full.put("offload/phi", report)
    page = gpu_report.markdown(full, "today", "the command")
    assert next(line for line in page.splitlines() if line.startswith("| plan against")).endswith("**no** |")


def test_a_trial_says_that_it_was_one(tmp_path: Path) -> None:
    key = {**KEY, "device": "a worker process that plays a GPU", "size": "small"}
    record = GpuRecord(tmp_path / "record", key)
    page = gpu_report.markdown(record, "today", "the command")
    assert "This was no GPU" in page
    assert "nothing was measured" in page
    assert gpu_report.file_name(record, "2026-01-02") == "2026-01-02-a-worker-process-that-plays-a-gpu-small"


def test_outcomes_of_tests(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.gpu.test_a" name="one"/>'
        '<testcase classname="tests.gpu.test_a" name="two"><failure message="assert 0">long</failure></testcase>'
        '<testcase classname="tests.gpu.test_a" name="three"><error message="fixture">long</error></testcase>'
        '<testcase classname="tests.gpu.test_a" name="four"><skipped message="no NVML"/></testcase>'
        "</testsuite></testsuites>",
        encoding="utf-8",
    )
    found = gpu_measure.outcomes(report)
    assert found["passed"] == ["test_a::one"]
    assert found["failed"] == {"test_a::two": "assert 0", "test_a::three": "fixture"}
    assert found["skipped"] == {"test_a::four": "no NVML"}


# --- the whole ---------------------------------------------------------------------------------------------------


def test_steps_are_those_that_there_are() -> None:
    assert tuple(gpu_measure.STEPS) == gpu.MEASURING
    with pytest.raises(SystemExit):
        gpu.arguments_of(["--step", "nothing"])


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="CUDA7 cannot be used"):
        gpu.main(["--step", "report", "--device", "CUDA7", "--work", str(tmp_path)])


@pytest.mark.timeout(960)
def test_a_trial_from_one_end_to_the_other(tmp_path: Path, demo_path: Path) -> None:
    """In pieces: the first command has no time for anything, the second goes on, the third finds all of it done."""
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--device", "loopback", "--small", "--threads", "1"]
    command += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "results"), "--commit", "abc"]
    command += ["--step", "weights", "phi", "--minutes"]
    outputs = []
    for minutes, expected in (("0.01", 3), ("30", 0), ("0.01", 0)):
        done = subprocess.run([*command, minutes], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == expected, done.stdout + done.stderr
        outputs.append(done.stdout)
    assert "give the command again" in outputs[0]
    assert "offload/phi/fit, 40 MiB: done" in outputs[2]
    [data] = (tmp_path / "results").glob("*.json")
    record = json.loads(data.read_text(encoding="utf-8"))
    assert not [name for name, unit in record["units"].items() if unit["failure"] is not None]
    assert record["key"]["commit"] == "abc"
    [page] = (tmp_path / "results").glob("*.md")
    text = page.read_text(encoding="utf-8")
    for part in ("This was no GPU", "| fit, 40 MiB |", "| 48 MiB |"):
        assert part in text


@pytest.mark.timeout(360)
@pytest.mark.parametrize(
    ("chosen", "passed"),
    [
        (["-k", "listed or child_of or more_than_the_device or decode or too_large or published or fused"], 9),
        (["tests/gpu/test_gpu_cache_text.py"], 38),
    ],
    ids=["some of it", "the cache of experts"],
)
def test_what_tests_gpu_says_is_tried_without_one(demo_path: Path, chosen: list[str], passed: int) -> None:
    """A part of it, on a backend that pretends; all of it takes a minute or two: docs/gpu.md."""
    where = [] if chosen[0].startswith("tests") else ["tests/gpu"]
    command = [sys.executable, "-m", "pytest", *where, *chosen, "-q", "-p", "no:cacheprovider"]
    variables: dict[str, str] = {**os.environ, "OMP_WAIT_POLICY": "passive", GPU_TESTS: "pretend"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{passed} passed" in done.stdout, done.stdout
