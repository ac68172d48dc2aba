"""The measurements of benchmarks/gpu.py, step by step; each is kept as soon as it is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree  # pytest's own report
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import programs
import shapes
import weights
from gpu_clock import Clock
from gpu_llama_bench import llama_bench
from gpu_record import GpuRecord, measured

from moebind import ContextParams, FlashAttnType, GgmlType, LoadMode, ModelParams, tune
from moebind.bench import Placement, offload
from moebind.bench.protocol import run_child
from moebind.bench.record import FailedError

PHI = "phi-3.5-moe-q4_k_m"
#: Seconds that nothing here takes.
LONGEST = 540.0
GIB = 2**30


@dataclass
class Run:
    """Record, time and settings of a command."""

    record: GpuRecord
    clock: Clock
    work: Path
    device: str
    small: bool
    threads: int
    retry: bool = False

    def unit(self, name: str, seconds: float, measure: Any, *, again: bool = False) -> Any:
        """Measure once; in small everything takes a few seconds."""
        expected = 5.0 if self.small else seconds
        return measured(self.record, self.clock, name, expected, measure, retry=self.retry, again=again)

    @property
    def context(self) -> ContextParams:
        """Of all placements: as in the published table."""
        n_ctx = 512 if self.small else 4096
        return ContextParams(n_ctx=n_ctx, n_threads=self.threads, n_threads_batch=self.threads)

    @property
    def counts(self) -> dict[str, int]:
        """Tokens and repetitions of the offload benchmark."""
        return {"n_prompt": 64, "n_generate": 8} if self.small else {"n_prompt": 512, "n_generate": 64}

    def budgets(self) -> dict[str, int]:
        """Bytes of device memory that fits are made for, by name."""
        if self.small:
            return {f"{size} MiB": size * 2**20 for size in (40, 48)}
        return {f"{size} GiB": size * GIB for size in (4, 6, 8, 12, 16)}

    @property
    def patience(self) -> float:
        """Seconds after which a process is taken to hang."""
        left = self.clock.left()
        return LONGEST if left is None else max(min(left, LONGEST), 10.0)

    def child(self, what: str, **request: object) -> Any:
        """A measurement in a process of its own."""
        return run_child("gpu_child", {"what": what, "device": self.device, **request}, timeout=self.patience)


def look(device: str, threads: int) -> dict[str, Any]:
    """Device, driver, build and machine. In another process: who asks a card anything takes memory on it."""
    try:
        found: dict[str, Any] = run_child("gpu_child", {"what": "look", "device": device}, timeout=120)
    except FailedError as error:
        raise SystemExit(f"{device} cannot be used: {error}") from error
    found["threads"] = threads
    smi = shutil.which("nvidia-smi")
    if smi is not None:
        query = (
            "--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,pcie.link.gen.max,power.limit"
        )
        listing = subprocess.run([smi, query, "--format=csv"], capture_output=True, text=True, check=False)
        found["nvidia-smi"] = listing.stdout.strip()
    return found


def tests(run: Run) -> None:
    """tests/gpu, with the outcome of each test."""

    def measure() -> dict[str, object]:
        report = run.work / "tests.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        variables = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        if run.device == "loopback":
            variables["MOEBIND_GPU_TESTS"] = "loopback"
        if run.small:
            command += ["-k", "devices or text_is_the_cpus or spawned"]
        done = subprocess.run(
            command, cwd=programs.ROOT, capture_output=True, text=True, check=False, timeout=run.patience, env=variables
        )
        (run.work / "tests.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if not report.exists():
            raise RuntimeError(f"pytest wrote no report: {done.stdout[-500:]}{done.stderr[-500:]}")
        return {**outcomes(report), "returncode": done.returncode}

    run.unit("tests", 240, measure)


def outcomes(report: Path) -> dict[str, Any]:
    """Passed, failed and skipped tests of a JUnit report, those that failed with their first lines."""
    found: dict[str, Any] = {"passed": [], "failed": {}, "skipped": {}}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314  # our own file
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if bad is not None:
            found["failed"][name] = (bad.get("message") or "")[:500]
        elif skipped is not None:
            found["skipped"][name] = (skipped.get("message") or "")[:200]
        else:
            found["passed"].append(name)
    return found


def phi_path(run: Run) -> Path:
    """Phi-3.5-MoE with random weights, made if it is not there."""
    return run.work / "models" / f"{PHI}{'-small' if run.small else ''}.gguf"


def make_weights(run: Run) -> None:
    """Write the file, and say how fast."""

    def measure() -> dict[str, object]:
        path = phi_path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        weights.write(path, shapes.small(shapes.SHAPES[PHI]) if run.small else shapes.SHAPES[PHI])
        seconds = time.perf_counter() - start
        return {"bytes": path.stat().st_size, "megabytes a second": path.stat().st_size / 1e6 / seconds}

    # A machine that was not there before has the record, and not the file.
    lost = not phi_path(run).exists() and run.record.result("weights") is not None
    run.unit("weights", 120, measure, again=lost)


def _offload(run: Run, name: str, path: Path, placements: list[Placement], seconds: float, **options: Any) -> None:
    """Placements one after the other, so that none is lost when time ends."""
    output = run.work / ("offload-small" if run.small else "offload") / f"{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    options = {"context_params": run.context, "progress": False, **run.counts, **options}
    if run.device == "loopback":
        options["worker_threads"] = run.threads
    good: list[Placement] = []
    for placement in placements:
        unit = f"offload/{name}/{placement.name}"

        def measure(placement: Placement = placement) -> dict[str, object]:
            # What failed is left out: it would be tried again.
            chosen = [*good, placement]
            report = offload(path, chosen, devices=[run.device], output=output, timeout=run.patience, **options)
            run.record.put(f"offload/{name}", report.to_dict())
            row = report.rows[-1]
            if row.failure is not None:
                raise FailedError(row.failure)
            return {"placement": row.name}

        if run.unit(unit, seconds, measure) is not None:
            good.append(placement)


def demo_path() -> Path | None:
    """The demo model; None, after a line that says why, where it cannot be made."""
    try:
        return Path(programs.demo_model())
    except SystemExit as error:
        print(f"without the demo model: {error}", flush=True)
        return None


def demo(run: Run) -> None:
    """The offload benchmark of the demo model, a real one that is small."""
    path = demo_path()
    if path is None:
        return
    chosen = ["all", "n-cpu-moe=15", "cpu-moe", "none"]
    _offload(run, "demo", path, [Placement.parse(text) for text in chosen], 40)


def phi(run: Run) -> None:
    """The offload benchmark of Phi-3.5-MoE: everything, experts in host memory, and what fits into budgets."""
    make_weights(run)
    placements = [Placement.parse("all"), Placement.parse("cpu-moe")]
    placements += [Placement(f"fit, {name}", memory=size) for name, size in run.budgets().items()]
    _offload(run, "phi", phi_path(run), placements, 100)


def cache(run: Run) -> None:
    """A cache for experts in host memory, of several sizes: of the model with random weights, and of the demo model."""
    make_weights(run)
    sizes = ["8MiB", "30MiB"] if run.small else ["1GiB", "2GiB", "4GiB", "8GiB"]
    plain = Placement("experts in host memory, no cache", ModelParams(use_extra_bufts=False).with_cpu_moe_all())
    _offload(run, "cache", phi_path(run), [plain, *(Placement.parse(f"moe-cache={size}") for size in sizes)], 100)
    path = demo_path()
    if path is not None:
        chosen = [Placement.parse(f"moe-cache={size}") for size in ("100MiB", "200MiB", "400MiB")]
        _offload(run, "demo cache", path, [plain, *chosen], 40)


def theirs(run: Run) -> None:
    """The choices of llama.cpp's own fit for the same budgets, measured in the same way."""
    make_weights(run)
    placements = []
    for name, size in run.budgets().items():
        request = _request(phi_path(run), {}, run.context)
        found = run.unit(
            f"their fit/{name}", 20, lambda request=request, size=size: run.child("their fit", **request, memory=size)
        )
        if found is not None:
            placements.append(Placement(f"llama.cpp's fit, {name}", ModelParams.from_dict(found["model_params"])))
    if placements:
        _offload(run, "theirs", phi_path(run), placements, 80)


def pairs(run: Run) -> None:
    """llama-bench and moebind in turn, with the same placement, tokens and threads."""
    make_weights(run)
    phi_report, moved = run.record.result("offload/phi"), ModelParams().with_cpu_moe_all().to_dict()
    wanted: list[tuple[str, Path, Mapping[str, Any]]] = []
    for model, path in (("Phi", phi_path(run)), ("demo", demo_path())):
        if path is not None:
            wanted += [(f"{model}, all on the device", path, {}), (f"{model}, experts in host memory", path, moved)]
    for row in phi_report["rows"] if phi_report else []:
        if row["failure"] is None and row["name"].startswith("fit"):
            fields = {key: value for key, value in row["model_params"].items() if key != "devices"}
            wanted.append((f"Phi, {row['name']}", phi_path(run), fields))
    bench = programs.program("llama-bench")
    for name, path, fields in wanted:
        run.unit(f"pair/{name}", 80, lambda path=path, fields=fields: _pair(run, bench, path, fields))


def _pair(run: Run, bench: Path, path: Path, fields: Mapping[str, Any]) -> dict[str, object]:
    params, context, counts = ModelParams.from_dict(fields), run.context, {**run.counts, "repeats": 3}
    found: dict[str, list[dict[str, Any]]] = {"llama-bench": [], "moebind": []}
    for _ in range(1 if path == phi_path(run) else 2):  # 25 GB are loaded each time
        found["llama-bench"].append(llama_bench(bench, path, params, context, counts, run.device))
        found["moebind"].append(run.child("speed", **_request(path, fields, context), **counts))
    result: dict[str, object] = {"runs": found}
    for what in ("prompt", "decode"):
        means = {who: _mean([speed for each in runs for speed in each[what]]) for who, runs in found.items()}
        result[what] = {**means, "ratio": means["moebind"] / means["llama-bench"]}
    return result


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def _request(path: Path, fields: Mapping[str, Any], context: ContextParams) -> dict[str, object]:
    threads = {"n_threads": context.n_threads, "n_threads_batch": context.n_threads_batch}
    return {
        "path": str(path),
        "model_params": dict(fields),
        "context_params": {**context.to_dict(), **threads},
    }


def settings(run: Run) -> None:
    """The effect of parameters that are argued about, with a long prompt."""
    make_weights(run)
    counts = {"n_prompt": 64, "n_generate": 8} if run.small else {"n_prompt": 2048, "n_generate": 32}
    host, context = ModelParams().with_cpu_moe_all(), run.context
    large = context.with_n_batch(2048).with_n_ubatch(2048)
    read = host.with_load_mode(LoadMode.NONE)
    variants: dict[str, tuple[ModelParams, ContextParams]] = {
        "experts in host memory, mapped; n_ubatch 512": (host, context),
        "n_ubatch 2048": (host, large),
        "n_ubatch 512, op_offload off": (host, context.with_op_offload(False)),
        "n_ubatch 2048, op_offload off": (host, large.with_op_offload(False)),
        "experts read into pinned memory, n_ubatch 512": (read, context),
        "experts read into pinned memory, n_ubatch 2048": (read, large),
        "experts repacked (no_host), n_ubatch 512": (read.with_no_host(True), context),
        "flash attention off": (host, context.with_flash_attn_type(FlashAttnType.DISABLED)),
        "cache Q8_0": (host, context.with_type_k(GgmlType.Q8_0).with_type_v(GgmlType.Q8_0)),
        "half of the threads": (host, context.with_n_threads(max(run.threads // 2, 1))),
        "everything on the device, n_ubatch 512": (ModelParams(), context),
        "everything on the device, n_ubatch 2048": (ModelParams(), large),
        "everything on the device, flash attention off": (
            ModelParams(), context.with_flash_attn_type(FlashAttnType.DISABLED),
        ),
        "everything on the device, cache Q8_0": (
            ModelParams(), context.with_type_k(GgmlType.Q8_0).with_type_v(GgmlType.Q8_0),
        ),
    }  # fmt: skip
    for name, (params, context_params) in variants.items():
        request = _request(phi_path(run), params.to_dict(), context_params)
        run.unit(f"settings/{name}", 45, lambda request=request: run.child("speed", **request, **counts, repeats=3))


def tuned(run: Run) -> None:
    """moebind.tune, with a budget into which not all of the experts fit; it goes on where time ended before."""
    make_weights(run)
    budget = list(run.budgets().values())[1 if run.small else 2]
    only: dict[str, Any] = {"dimensions": ["placement", "flash attention"], "n_prompt": 32, "n_generate": 4}
    folder = run.work / ("tune-small" if run.small else "tune")
    for goal in ("chat", "long-prompt"):
        journal = folder / f"{goal}.journal"

        def measure(goal: str = goal, journal: Path = journal) -> dict[str, object]:
            folder.mkdir(parents=True, exist_ok=True)
            found = tune(
                phi_path(run),
                goal=goal,
                minutes=1.0 if run.small else run.patience / 60 - 1,
                memory=budget,
                context_params=run.context,
                devices=[run.device],
                worker_threads=run.threads,
                journal=journal,
                resume=journal.exists(),
                save=False,
                **(only if run.small else {}),
            )
            if not found.complete and not run.small:
                raise FailedError("there was no time for all of it: --retry goes on")
            return found.to_dict()

        run.unit(f"tune/{goal}", LONGEST - 60, measure)


def refuse(run: Run) -> None:
    """Too little memory on the device, which must be an exception, and nothing worse."""

    def measure() -> Any:
        folder = run.work / "models"
        folder.mkdir(parents=True, exist_ok=True)
        name = "deepseek-v3-q4_k_m"
        header = shapes.write(folder / f"{name}.gguf", shapes.SHAPES[name])  # 377 GB that are not there
        path = demo_path()
        if path is None:
            raise FileNotFoundError("the demo model is missing")
        return run.child("refuse", too_large=str(header), path=str(path), leave=384 * 2**20)

    run.unit("refuse", 60, measure)


#: Every step that measures, the most important first.
STEPS: dict[str, Callable[[Run], None]] = {
    "test": tests,
    "weights": make_weights,
    "phi": phi,
    "pairs": pairs,
    "theirs": theirs,
    "demo": demo,
    "cache": cache,
    "settings": settings,
    "tune": tuned,
    "refuse": refuse,
}
