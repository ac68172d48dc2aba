"""The report of benchmarks/gpu.py: one JSON file with everything, one page of tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_record import GpuRecord

from moebind._core.tables import Column, markdown_table
from moebind.backend.breakdown import PARTS

GIB, MIB = 2**30, 2**20
#: Phi-3.5-MoE Q4_K_M, measured by others in 2025 (docs/offload.md): GB with everything there, GB without the experts.
PUBLISHED = {"all on the device": 24.14, "experts in host memory": 1.72}
#: What the measurements are to show: docs/gpu.md. This llama.cpp takes 8 MiB more than that one.
PAIR_TARGET, SAVED_TARGET, SEEN_TARGET = 0.98, 0.928, 1.73


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
        *_caches(record),
        *_pairs(record),
        *_settings(record),
        *_tuned(record),
        *_refused(record),
        *_tests(record),
        *_missing(record),
    ]
    return "\n\n".join(parts) + "\n"


def table(columns: Sequence[Column | str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, of columns or only their names."""
    named = [Column(each) if isinstance(each, str) else each for each in columns]
    return "\n".join(markdown_table(named, rows))


def _conditions(record: GpuRecord, command: str) -> Iterator[str]:
    here = record.environment
    dates = sorted(each.date for each in record)
    conditions = [
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
    yield "\n".join(f"- {name}: {value}" for name, value in conditions)
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
        held, outside, saved = moved["device_bytes"], moved["device_bytes_seen"], moved["reduction"]
        value = f"{held / GIB:.2f} GiB"
        most = f"at most {SEEN_TARGET} GiB"
        lines.append(("experts in host memory, allocated", most, value, _met(held <= SEEN_TARGET * GIB)))
        if outside is not None:
            value = f"{outside / GIB:.2f} GiB"
            lines.append(("experts in host memory, seen from outside", most, value, _met(outside <= SEEN_TARGET * GIB)))
        least = f"at least {100 * SAVED_TARGET:.1f} %"
        lines.append(("device memory saved", least, f"{saved:.1%}", _met(saved >= SAVED_TARGET)))
    ratios = {name.partition("/")[2]: unit["decode"]["ratio"] for name, unit in _results(record, "pair/")}
    if ratios:
        worst = min(ratios, key=lambda name: ratios[name])
        value = f"{ratios[worst]:.3f} ({worst})"
        met = _met(ratios[worst] >= PAIR_TARGET)
        lines.append(("decode against llama-bench, the worst", f"at least {PAIR_TARGET}", value, met))
    compared = list(_compared(record))
    if compared:
        worst_fit = min(compared, key=lambda each: each[1] / each[2])
        value = f"{worst_fit[1] / worst_fit[2]:.3f} ({worst_fit[0]})"
        met = _met(all(ours >= other for _, ours, other in compared))
        lines.append(("decode of fit against llama.cpp's fit, the worst", "at least 1", value, met))
    errors = [
        error for kind in ("phi", "demo") for row in _rows(record.result(f"offload/{kind}")) for error in _errors(row)
    ]
    if errors:
        value = f"{max(errors)[1] / MIB:.2f} MiB, {max(errors)[0]:.2%}"
        met = _met(all(share <= 0.01 or size <= 4 * MIB for share, size in errors))
        lines.append(("plan against allocation, the worst", "1 % or 4 MiB", value, met))
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
            off = abs(planned.get(part, 0) - held.get(part, 0))
            yield off / max(held.get(part, 0), 1) if off else 0.0, off


def _speed(samples: Mapping[str, Any] | None) -> str | None:
    return None if samples is None else f"{samples['mean']:.1f} ± {samples['std']:.1f}"


def _mebibytes(count: int | None) -> float | None:
    return None if count is None else count / MIB


def _offload(report: Mapping[str, Any]) -> Iterator[str]:
    columns = [
        Column("placement"),
        Column("device, GiB", ".2f"),
        Column("saved", ".1%"),
        Column("host, GiB", ".2f"),
        Column("load, s", ".1f"),
        Column("prompt, tokens/s"),
        Column("decode, tokens/s"),
        Column("first token, ms"),
        Column("mean KL", ".1e"),
        Column("same top token", ".1%"),
        Column("published, GB"),
    ]
    published = PUBLISHED if "phi" in str(report["environment"]["files"][0]["name"]) else {}
    rows: list[list[object]] = []
    for row in report["rows"]:
        if row["failure"] is not None:
            rows.append([row["name"], f"failed: {row['failure']}", *[None] * (len(columns) - 2)])
            continue
        others = row["name"] != report["reference"]
        agreement = row["agreement"] if others and row["agreement"] is not None else {}
        first = row["first_token"]
        rows.append(
            [
                row["name"],
                row["device_bytes"] / GIB,
                row["reduction"] if others else None,
                sum(row["allocated"][-1].get(part, 0) for part in PARTS) / GIB,
                row["load"],
                _speed(row["prompt"]),
                _speed(row["decode"]),
                None if first is None else f"{1e3 * first['mean']:.0f} ± {1e3 * first['std']:.0f}",
                agreement.get("mean_kl"),
                agreement.get("same_top"),
                published.get(row["name"]),
            ]
        )
    yield table(columns, rows)
    settings, files = report["settings"], report["environment"]["files"]
    yield "\n".join(
        [
            f"- {settings['repeats']} runs after {settings['warmup']} to warm up: a prompt of {settings['n_prompt']} "
            f"tokens, then {settings['n_generate']} one at a time; mean ± standard deviation",
            *(f"- {file['name']}: {file['size']} bytes, SHA-256 {file['sha256']}" for file in files),
        ]
    )


def _memory(report: Mapping[str, Any]) -> Iterator[str]:
    sizes = ("planned, MiB", "allocated, MiB", "seen from outside, MiB", "the driver's own, MiB")
    rows: list[list[object]] = []
    for row in _rows(report):
        planned, held = row["predicted"] or [], row["allocated"] or []
        for ours, theirs in zip(planned[:-1], held[:-1], strict=True):
            predicted, allocated = (sum(each.get(part, 0) for part in PARTS) for each in (ours, theirs))
            outside = row["device_bytes_seen"] if len(held) == 2 else None
            beyond = None if outside is None else outside - allocated
            rows.append([row["name"], theirs["name"], *map(_mebibytes, (predicted, allocated, outside, beyond))])
    yield "### Planned, allocated, seen by the driver"
    yield table(["placement", "device", *(Column(name, ".1f") for name in sizes)], rows)


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
    rows: list[list[object]] = []
    for budget, row in ours.items():
        other = theirs.get(budget)
        ratio = None if other is None else row["decode"]["mean"] / other["decode"]["mean"]
        rows.append([budget, *_fit_cells(row), *_fit_cells(other), ratio])
    columns = [
        Column(f"{who}: {name}", form)
        for who in ("fit", "llama.cpp")
        for name, form in (("device, MiB", ".1f"), ("prompt", ""), ("decode", ""))
    ]
    yield table(["budget", *columns, Column("ratio of decode", ".3f")], rows)


def _fit_cells(row: Mapping[str, Any] | None) -> list[object]:
    if row is None:
        return [None, None, None]
    return [_mebibytes(row["device_bytes"]), _speed(row["prompt"]), _speed(row["decode"])]


def _caches(record: GpuRecord) -> Iterator[str]:
    for title, kind in (("Phi-3.5-MoE", "cache"), ("the demo model", "demo cache")):
        rows = _rows(record.result(f"offload/{kind}"))
        if not rows or rows[0]["decode"] is None:
            continue
        yield f"## A cache of experts: {title}"
        cells = []
        for row in rows:
            counted = row["moe_cache"] or {}
            looked_up = counted.get("hits", 0) + counted.get("misses", 0)
            cells.append(
                [
                    row["name"],
                    _mebibytes(row["device_bytes"]),
                    counted.get("n_slots"),
                    counted["hits"] / looked_up if looked_up else None,
                    _mebibytes(counted.get("bytes_uploaded")),
                    _speed(row["prompt"]),
                    _speed(row["decode"]),
                    row["decode"]["mean"] / rows[0]["decode"]["mean"],
                ]
            )
        columns = [
            Column("device, MiB", ".1f"),
            Column("experts it holds"),
            Column("hit rate", ".1%"),
            Column("uploaded, MiB", ".1f"),
            Column("prompt, tokens/s"),
            Column("decode, tokens/s"),
            Column("times as fast", ".3f"),
        ]
        yield table(["placement", *columns], cells)


def _pairs(record: GpuRecord) -> Iterator[str]:
    kinds = [
        (what, who, form)
        for what in ("prompt", "decode")
        for who, form in (("llama-bench", ".1f"), ("moebind", ".1f"), ("ratio", ".3f"))
    ]
    rows = [
        [name.partition("/")[2], *(result[what][who] for what, who, _ in kinds)]
        for name, result in _results(record, "pair/")
    ]
    if rows:
        yield "## Against llama-bench, in the same run"
        yield table(["placement", *(Column(f"{what}: {who}", form) for what, who, form in kinds)], rows)


def _settings(record: GpuRecord) -> Iterator[str]:
    rows: list[list[object]] = []
    for name, result in _results(record, "settings/"):
        means = [sum(result[what]) / len(result[what]) for what in ("prompt", "decode")]
        rows.append([name.partition("/")[2], _mebibytes(result["device_bytes"]), *means])
    if rows:
        yield "## Parameters, with a long prompt"
        columns = [Column(name, ".1f") for name in ("device, MiB", "prompt, tokens/s", "decode, tokens/s")]
        yield table(["parameters", *columns], rows)


def _tuned(record: GpuRecord) -> Iterator[str]:
    for name, result in _results(record, "tune/"):
        found = result["tuning"]
        yield f"## Tuned for {name.partition('/')[2]}"
        rows = [
            (
                step["dimension"],
                step["name"],
                step["gain"],
                step["low"],
                step["high"],
                "yes" if step["kept"] else step["why"],
            )
            for step in [*found["steps"], *([found["total"]] if found["total"] else [])]
        ]
        times = [Column(what, ".2f") for what in ("times as fast", "from", "to (95 %)")]
        yield table(["what", "best choice", *times, "kept"], rows)


def _refused(record: GpuRecord) -> Iterator[str]:
    found = record.result("refuse")
    if found is not None:
        yield "## Too little memory"
        rows = [(case, "not tried" if message is None else f"`{_short(message)}`") for case, message in found.items()]
        yield table(("case", "what was raised, or said"), rows)


def _short(message: str) -> str:
    """The first line, and those that tell of an allocation."""
    first, *rest = message.splitlines() or [""]
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
