"""The report of benchmarks/gpu.py: one JSON file with everything, one page of tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_record import GpuRecord

GIB, MIB = 2**30, 2**20
PARTS = ("model", "context", "compute")
#: Phi-3.5-MoE Q4_K_M, measured by others in 2025 (docs/offload.md): GB with everything there, GB without the experts.
PUBLISHED = {"all on the device": 24.14, "experts in host memory": 1.72}
#: What the measurements are to show: docs/gpu.md.
PAIR_TARGET, SAVED_TARGET, SEEN_TARGET = 0.98, 0.929, 1.72 * GIB


def file_name(record: GpuRecord, day: str) -> str:
    """A name for the files: the day, and the device."""
    return f"{day}-{slug(record.key)}"


def slug(key: Mapping[str, str]) -> str:
    """Device and size, as part of a file's name."""
    device = re.sub(r"[^a-z0-9]+", "-", key["device"].lower()).strip("-")
    return device + ("-small" if key["size"] == "small" else "")


def write(record: GpuRecord, folder: Path, name: str, command: str) -> tuple[Path, Path]:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / f"{name}.json", folder / f"{name}.md"
    data.write_text(json.dumps({**record.to_dict(), "command": command}, indent=1) + "\n", encoding="utf-8")
    page.write_text(markdown(record, name, command), encoding="utf-8")
    return data, page


def markdown(record: GpuRecord, name: str, command: str) -> str:
    """The page: what was measured with what, the tables, and what is missing."""
    parts = [f"# {name}", *_conditions(record, command), *_verdicts(record)]
    for title, kind in (("Phi-3.5-MoE Q4_K_M, random weights", "phi"), ("The demo model", "demo")):
        report = record.result(f"offload/{kind}")
        if report is not None:
            parts += [f"## {title}", *_offload(report), *_memory(report)]
    parts += [
        *_fits(record),
        *_pairs(record),
        *_settings(record),
        *_refused(record),
        *_tests(record),
        *_missing(record),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in line) + " |" for line in lines
    )


def _conditions(record: GpuRecord, command: str) -> Iterator[str]:
    here = record.environment
    dates = sorted(each.date for each in record)
    told = [
        ("device", f"{record.key['device']}, driver {record.key['driver']}"),
        ("date", f"{dates[0]} to {dates[-1]}" if dates else "nothing was measured"),
        ("commit", record.key["commit"]),
        ("command", f"`{command}`"),
        *((name, here[name]) for name in ("llama.cpp", "threads", "system", "python", "nvml") if name in here),
    ]
    if record.key["device"].startswith("a worker process"):
        yield "**This was no GPU.** A worker process played one: the numbers say that the benchmark runs, and no more."
    if record.key["size"] == "small":
        yield "**A small model and few tokens**: a trial of the benchmark."
    yield "\n".join(f"- {name}: {value}" for name, value in told)
    if here.get("nvidia-smi"):
        yield f"```text\n{here['nvidia-smi']}\n```"
    if here.get("doctor"):
        yield f"```text\n{here['doctor']}\n```"


def _rows(report: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows that were measured."""
    return [] if report is None else [row for row in report["rows"] if row["failure"] is None]


def _verdicts(record: GpuRecord) -> Iterator[str]:
    """The targets, and whether they were met."""
    lines: list[Sequence[str]] = []
    rows = {row["name"]: row for row in _rows(record.result("offload/phi"))}
    moved = rows.get("experts in host memory")
    if moved is not None:
        held, seen, saved = moved["device_bytes"], moved["device_bytes_seen"], moved["reduction"]
        told = f"{held / GIB:.2f} GiB"
        lines.append(("experts in host memory, allocated", "at most 1.72 GiB", told, _met(held <= SEEN_TARGET)))
        if seen is not None:
            told = f"{seen / GIB:.2f} GiB"
            lines.append(
                ("experts in host memory, seen from outside", "at most 1.72 GiB", told, _met(seen <= SEEN_TARGET))
            )
        lines.append(("device memory saved", "at least 92.9 %", f"{saved:.1%}", _met(saved >= SAVED_TARGET)))
    ratios = {name.partition("/")[2]: unit["decode"]["ratio"] for name, unit in _results(record, "pair/")}
    if ratios:
        worst = min(ratios, key=lambda name: ratios[name])
        told = f"{ratios[worst]:.3f} ({worst})"
        lines.append(
            ("decode against llama-bench, the worst", "at least 0.98", told, _met(ratios[worst] >= PAIR_TARGET))
        )
    compared = list(_compared(record))
    if compared:
        worst_fit = min(compared, key=lambda each: each[1] / each[2])
        told = f"{worst_fit[1] / worst_fit[2]:.3f} ({worst_fit[0]})"
        met = _met(all(ours >= other for _, ours, other in compared))
        lines.append(("decode of fit against llama.cpp's fit, the worst", "at least 1", told, met))
    errors = [
        error for kind in ("phi", "demo") for row in _rows(record.result(f"offload/{kind}")) for error in _errors(row)
    ]
    if errors:
        told = f"{max(errors)[1] / MIB:.2f} MiB, {max(errors)[0]:.2%}"
        met = _met(all(share <= 0.01 or size <= 4 * MIB for share, size in errors))
        lines.append(("plan against allocation, the worst", "1 % or 4 MiB", told, met))
    if lines:
        yield "## Targets"
        yield table(("what", "target", "measured", "met"), lines)


def _met(yes: bool) -> str:
    return "yes" if yes else "**no**"


def _results(record: GpuRecord, prefix: str) -> Iterator[tuple[str, Any]]:
    for each in record:
        if each.name.startswith(prefix) and each.failure is None:
            yield each.name, each.result


def _errors(row: Mapping[str, Any]) -> Iterator[tuple[float, int]]:
    """How far the plan was off, for each device and class: of what was allocated, and in bytes."""
    if row["predicted"] is None or row["allocated"] is None:
        return
    for planned, held in zip(row["predicted"], row["allocated"], strict=True):
        for part in PARTS:
            off = abs(planned[part] - held[part])
            yield off / max(held[part], 1) if off else 0.0, off


def _speed(samples: Mapping[str, Any] | None) -> str:
    return "" if samples is None else f"{samples['mean']:.1f} ± {samples['std']:.1f}"


def _size(count: int | None) -> str:
    return "" if count is None else f"{count / MIB:.1f}"


def _offload(report: Mapping[str, Any]) -> Iterator[str]:
    head = (
        "placement",
        "device, GiB",
        "saved",
        "host, GiB",
        "load, s",
        "prompt, tokens/s",
        "decode, tokens/s",
        "first token, ms",
    )
    head += ("mean KL", "same top token", "published, GB")
    rows = []
    for row in report["rows"]:
        if row["failure"] is not None:
            rows.append([row["name"], f"failed: {row['failure']}", *[""] * (len(head) - 2)])
            continue
        agreement = row["agreement"] if row["name"] != report["reference"] else None
        first = row["first_token"]
        rows.append(
            [
                row["name"],
                f"{row['device_bytes'] / GIB:.2f}",
                "" if row["name"] == report["reference"] else f"{row['reduction']:.1%}",
                f"{sum(row['allocated'][-1][part] for part in PARTS) / GIB:.2f}",
                "" if row["load"] is None else f"{row['load']:.1f}",
                _speed(row["prompt"]),
                _speed(row["decode"]),
                "" if first is None else f"{1e3 * first['mean']:.0f} ± {1e3 * first['std']:.0f}",
                "" if agreement is None else f"{agreement['mean_kl']:.1e}",
                "" if agreement is None else f"{agreement['same_top']:.1%}",
                str(PUBLISHED.get(row["name"], "")) if "phi" in str(report["environment"]["files"][0]["name"]) else "",
            ]
        )
    yield table(head, rows)
    settings, files = report["settings"], report["environment"]["files"]
    yield "\n".join(
        [
            f"- {settings['repeats']} runs after {settings['warmup']} to warm up: a prompt of {settings['n_prompt']} "
            f"tokens, then {settings['n_generate']} one at a time; mean ± standard deviation",
            *(f"- {file['name']}: {file['size']} bytes, SHA-256 {file['sha256']}" for file in files),
        ]
    )


def _memory(report: Mapping[str, Any]) -> Iterator[str]:
    head = ("placement", "device", "planned, MiB", "allocated, MiB", "seen from outside, MiB", "the driver's own, MiB")
    rows = []
    for row in _rows(report):
        planned, held = row["predicted"] or [], row["allocated"] or []
        for ours, theirs in zip(planned[:-1], held[:-1], strict=True):
            sizes = [sum(each[part] for part in PARTS) for each in (ours, theirs)]
            seen = row["device_bytes_seen"] if len(held) == 2 else None
            beyond = None if seen is None else seen - sizes[1]
            rows.append([row["name"], theirs["name"], *map(_size, sizes), _size(seen), _size(beyond)])
    yield "### Planned, allocated, seen by the driver"
    yield table(head, rows)


def _compared(record: GpuRecord) -> Iterator[tuple[str, float, float]]:
    """Budgets at which both fits were measured, with the decode speed of ours and of theirs."""
    ours = {row["name"]: row for row in _rows(record.result("offload/phi"))}
    for row in _rows(record.result("offload/theirs")):
        budget = row["name"].rpartition(", ")[2]
        mine = ours.get(f"fit, {budget}")
        if mine is not None:
            yield budget, mine["decode"]["mean"], row["decode"]["mean"]


def _fits(record: GpuRecord) -> Iterator[str]:
    ours = {
        row["name"].rpartition(", ")[2]: row for row in _rows(record.result("offload/phi")) if "fit, " in row["name"]
    }
    theirs = {row["name"].rpartition(", ")[2]: row for row in _rows(record.result("offload/theirs"))}
    if not ours:
        return
    yield "## Budgets: moebind.fit beside llama.cpp's own"
    rows = []
    for budget, row in ours.items():
        other = theirs.get(budget)
        rows.append(
            [
                budget,
                *(cell for each in (row, other) for cell in _fit_cells(each)),
                "" if other is None else f"{row['decode']['mean'] / other['decode']['mean']:.3f}",
            ]
        )
    cells = ("device, MiB", "prompt", "decode")
    head = ["budget", *(f"{who}: {cell}" for who in ("fit", "llama.cpp") for cell in cells), "ratio of decode"]
    yield table(head, rows)


def _fit_cells(row: Mapping[str, Any] | None) -> list[str]:
    return ["", "", ""] if row is None else [_size(row["device_bytes"]), _speed(row["prompt"]), _speed(row["decode"])]


def _pairs(record: GpuRecord) -> Iterator[str]:
    rows = []
    for name, unit in _results(record, "pair/"):
        cells = [
            f"{unit[what][who]:.3f}" if who == "ratio" else f"{unit[what][who]:.1f}"
            for what in ("prompt", "decode")
            for who in ("llama-bench", "moebind", "ratio")
        ]
        rows.append([name.partition("/")[2], *cells])
    if rows:
        yield "## Against llama-bench, in the same run"
        head = [f"{what}: {who}" for what in ("prompt", "decode") for who in ("llama-bench", "moebind", "ratio")]
        yield table(["placement", *head], rows)


def _settings(record: GpuRecord) -> Iterator[str]:
    rows = []
    for name, unit in _results(record, "settings/"):
        means = [f"{sum(unit[what]) / len(unit[what]):.1f}" for what in ("prompt", "decode")]
        rows.append([name.partition("/")[2], _size(unit["device_bytes"]), *means])
    if rows:
        yield "## Parameters, with a long prompt"
        yield table(("parameters", "device, MiB", "prompt, tokens/s", "decode, tokens/s"), rows)


def _refused(record: GpuRecord) -> Iterator[str]:
    found = record.result("refuse")
    if found is not None:
        yield "## Too little memory"
        rows = [(case, "not tried" if said is None else f"`{_short(said)}`") for case, said in found.items()]
        yield table(("case", "what was raised, or said"), rows)


def _short(said: str) -> str:
    """The first line, and those that tell of an allocation."""
    first, *rest = said.splitlines() or [""]
    return " / ".join([first, *(line.strip() for line in rest if "alloc" in line.lower())])[:400]


def _tests(record: GpuRecord) -> Iterator[str]:
    found = record.result("tests")
    if found is not None:
        yield "## tests/gpu"
        yield f"{len(found['passed'])} passed, {len(found['failed'])} failed, {len(found['skipped'])} skipped."
        if found["failed"]:
            yield table(("test", "why"), [(name, why.split("\n")[0]) for name, why in found["failed"].items()])


def _missing(record: GpuRecord) -> Iterator[str]:
    failed = [(each.name, each.failure) for each in record if each.failure is not None]
    if failed:
        yield "## What failed"
        yield table(("measurement", "why"), [(name, why.splitlines()[0]) for name, why in failed])
