"""Reports as tables, in the form of the published one."""

from __future__ import annotations

from typing import Any

from moebind._core.sizes import show_size
from moebind._core.tables import Column, markdown_table, text_table
from moebind.bench.rows import OffloadRow, OffloadRows, Samples
from moebind.params.params import ContextParams

__all__ = ["markdown", "plain"]


def markdown(report: OffloadRows) -> str:
    """A table, and a list of conditions."""
    conditions = [f"- {name}: {value}" for name, value in _conditions(report)]
    return "\n".join([f"**{_title(report)}**", "", *markdown_table(*_table(report)), "", *conditions]) + "\n"


def plain(report: OffloadRows) -> str:
    """A table and conditions for terminals."""
    conditions = [f"{name}: {value}" for name, value in _conditions(report)]
    return "\n".join([_title(report), "", *text_table(*_table(report)), "", *conditions])


def _title(report: OffloadRows) -> str:
    files: Any = report.environment.get("files") or [{"name": "?", "size": 0}]
    model: Any = report.environment.get("model") or {}
    parts = [model.get("description", ""), show_size(sum(each["size"] for each in files))]
    return f"{files[0]['name']} ({', '.join(filter(None, parts))})"


def _table(report: OffloadRows) -> tuple[list[Column], list[list[object]]]:
    """Columns and rows; the columns that nobody has anything in are left out."""
    largest = max((row.allocated.device_bytes for row in report.rows if row.allocated is not None), default=0)
    unit, size, digits = ("GiB", 2**30, ".2f") if largest >= 2**30 else ("MiB", 2**20, ".1f")
    columns = [
        Column("placement", left=True),
        Column(f"device, {unit}", digits),
        Column(f"seen from outside, {unit}", digits),
        Column("saved", ".1%"),
        Column(f"host, {unit}", digits),
        Column("prompt, tokens/s"),
        Column("decode, tokens/s"),
        Column("first token, ms"),
        Column("cache hits", ".1%"),
        Column("mean KL"),
        Column("same top token", ".1%"),
        Column("same texts"),
    ]
    rows: list[list[object]] = []
    for row in report.rows:
        if row.allocated is None:
            rows.append([row.name, f"failed: {' '.join(str(row.failure).split())}"])
            continue
        outside = row.device_bytes_seen
        rows.append(
            [
                row.name,
                row.allocated.device_bytes / size,
                None if outside is None else outside / size,
                None if row.name == report.reference else report.reduction(row.name),
                row.allocated.host_bytes / size,
                _speed(row.prompt),
                _speed(row.decode),
                _speed(row.first_token, 1e3),
                None if row.moe_cache is None else row.moe_cache.hit_rate,
                *_agreement(row, report.reference),
            ]
        )
    full = [row for row in rows if len(row) == len(columns)]
    kept = [at for at in range(len(columns)) if any(row[at] is not None for row in full)] if full else [0, 1]
    return [columns[at] for at in kept], [[row[at] for at in kept] if row in full else row for row in rows]


def _speed(samples: Samples | None, times: float = 1.0) -> str | None:
    return None if samples is None else f"{times * samples.mean:.1f} ± {times * samples.std:.1f}"


def _agreement(row: OffloadRow, reference: str | None) -> list[object]:
    found = row.agreement
    if found is None or row.name == reference:
        return [None, None, None]
    divergence = f"{found.mean_kl:.1e}" if found.mean_kl else "0"
    return [divergence, found.same_top, f"{found.same_continuations} of {found.n_prompts}"]


def _conditions(report: OffloadRows) -> list[tuple[str, str]]:
    """Files, settings, build and machine, and when it was measured."""
    environment: Any = report.environment
    settings: Any = report.settings
    machine: Any = environment.get("machine") or {}
    build = environment["build"]
    context = {"n_ctx": ContextParams().n_ctx, **settings["context_params"]}  # said even where it is the default
    found = [
        ("runs", f"{settings['repeats']} after {settings['warmup']} to warm up; mean ± standard deviation"),
        ("prompt, decoded", f"{settings['n_prompt']} and {settings['n_generate']} tokens, counted by the tokenizer"),
        ("context", ", ".join(f"{name} {value}" for name, value in context.items())),
        ("devices", ", ".join(map(_device, settings["devices"]))),
        (
            "files",
            ", ".join(
                f"{each['name']} {each['size']} bytes, SHA-256 {each['sha256']}" for each in environment["files"]
            ),
        ),
        (
            "build",
            f"moebind {build['moebind']}, llama.cpp {build['llama_cpp']} ({build['commit']}); CUDA {build['cuda']}"
            + (f"; Vulkan {build['vulkan']}" if "vulkan" in build else ""),
        ),
        ("build flags", build["system_info"].strip()),
    ]
    if machine:
        found.append(("processor", f"{machine['processor']}, {machine['cores_allowed']} of {machine['cores']} cores"))
        cards = [each for each in machine["devices"] if each["type"] != "CPU" and each["backend"] != "RPC"]
        if cards:
            found.append(("cards", ", ".join(f"{each['name']} {each['description']}" for each in cards)))
        if machine["driver"]:
            found.append(("driver", machine["driver"]))
    loads = [row.load_average for row in report.rows if row.load_average is not None]
    if loads:
        found.append(("load at the start", _range(f"{min(loads):.2f}", f"{max(loads):.2f}")))
    agreeing = [row for row in report.rows if row.agreement is not None]
    if agreeing and agreeing[0].agreement is not None:
        found.append(
            (
                "agreement",
                f"of {_counted(agreeing[0].agreement.n_positions, 'position')} of "
                f"{_counted(agreeing[0].agreement.n_prompts, 'prompt')}, with {report.reference}",
            )
        )
    errors = [row.worst_error for row in report.rows if row.worst_error is not None]
    if errors:
        worst = max(errors)
        found.append(("plan against allocation", f"at most {_counted(worst, 'byte')} off" if worst else "exact"))
    reasons = sorted({row.nvml for row in report.rows if row.nvml is not None})
    if reasons and any("CUDA" in str(each) for each in machine.get("devices", ())):
        found.append(("NVML", reasons[0]))
    # What is there already is not measured again: the rows say when they were.
    dates = [row.date for row in report.rows] or [environment["date"]]
    found += [("date", _range(min(dates), max(dates))), ("command", f"`{environment['command']}`")]
    return found


def _range(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _device(each: Any) -> str:
    if each["kind"] == "loopback":
        return f"a worker process on this machine, with {each['n_threads']} thread{'s' * (each['n_threads'] > 1)}"
    return str(each.get("endpoint") or each["name"])
