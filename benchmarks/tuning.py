"""From the defaults to tuned: moebind.tune for several models, as a table of Markdown.

    python benchmarks/tuning.py [MODEL.gguf ...] [--device 300MiB] [--minutes N] [--goal GOAL] [--write-docs]

Each model is tuned in turn, for so many minutes. The speeds and the factor are of the last comparison, in which the
defaults and what was found take turns in rounds that decided nothing before. Given again with ``--resume``, it goes on.

Without models, the demo models are tuned: the one without experts, and the one with them in two sizes; each for the
processor alone, and with a worker process that plays a device, which has no room for all of it. With ``--write-docs``,
each result goes into docs/tuning.json as soon as it is there, and from that into the table of docs/tune.md; with
``--minutes 0`` without measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import page_tables
from programs import demo_model

import moebind
from moebind import Ftype, Tuning
from moebind._core.tables import Column, markdown_table
from moebind.tuning.report import medians

RESULTS, PAGE = page_tables.DOCS / "tuning.json", page_tables.DOCS / "tune.md"
COLUMNS = [
    Column(name)
    for name in (
        "model", "device", "kept", "prompt, tokens/s", "decode, tokens/s", "times as fast", "95 %", "rounds", "minutes",
    )
]  # fmt: skip
#: Devices with room for a part of each demo model.
PARTS = ("100MiB", "300MiB", "500MiB")


def demo_models() -> Iterator[tuple[Path, str]]:
    """Models, and the devices that they are tuned for."""
    dense, experts = Path(demo_model(dense=True)), Path(demo_model())
    larger = experts.with_name(experts.name.replace("Q4_1", "Q8_0"))
    if not larger.exists():
        unfinished = larger.with_name(f"{larger.name}.{os.getpid()}")
        moebind.quantize(experts, unfinished, Ftype.Q8_0, allow_requantize=True)
        unfinished.replace(larger)
    for model in (dense, experts, larger):
        yield model, "none"
    yield from zip((dense, experts, larger), PARTS, strict=True)


def result(found: Tuning, device: str, minutes: float) -> dict[str, Any]:
    """What is kept of a search."""
    total = found.total if found.kept else None
    return {
        "model": os.path.basename(found.path),
        "device": device,
        "goal": found.goal.name,
        "tokens": [found.goal.n_prompt, found.goal.n_generate],
        "kept": [step.name for step in found.kept],
        "speeds": medians(found) if found.kept else _of_the_defaults(found),
        "gain": None if total is None else [total.gain, total.low, total.high],
        "rounds": None if total is None else len(total.differences),
        "minutes": round(minutes, 1),
        "complete": found.complete,
        "conditions": _about(found.conditions),
    }


def _of_the_defaults(found: Tuning) -> dict[str, list[float]]:
    """Tokens a second of each part with the defaults, medians."""
    measured = [each for each in found.trials if each.configuration == found.start and each.failure is None]
    return {
        part: [statistics.median(each.speeds[part] for each in measured)] for part in found.goal.weights if measured
    }


def _about(conditions: Mapping[str, Any]) -> str:
    machine = f"{conditions['processor']}, {conditions['processors']} processors"
    version = conditions["build"]["llama_cpp"]
    load, day = conditions["load_average"][0], str(conditions["date"])[:10]
    waiting = os.environ.get("OMP_WAIT_POLICY")
    threads = "" if waiting is None else f", OMP_WAIT_POLICY={waiting}"
    return f"{day}, {machine}{threads}, llama.cpp {version}, load {load:.0f} at the end"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    device = row["device"]
    found = [row["model"], f"a worker process of {device}" if device[:1].isdecimal() else device]
    found.append(", ".join(row["kept"]) or "nothing: the defaults")
    speeds = [row["speeds"].get(part) for part in ("prompt", "decode")]
    found += ["" if each is None else " -> ".join(f"{speed:.1f}" for speed in each) for each in speeds]
    gain, low, high = row["gain"] or (1.0, None, None)
    found += [f"{gain:.2f}", "" if low is None else f"{low:.2f} to {high:.2f}"]
    return [*found, "" if row["rounds"] is None else str(row["rounds"]), f"{row['minutes']:g}"]


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table, and below it with what it was measured."""
    yield from markdown_table(COLUMNS, map(cells, rows))
    yield ""
    for about in dict.fromkeys(f"{_work(row)}. {row['conditions']}" for row in rows):
        models = dict.fromkeys(row["model"] for row in rows if f"{_work(row)}. {row['conditions']}" == about)
        yield f"- {', '.join(models)}: {about}."


def _work(row: Mapping[str, Any]) -> str:
    prompt, tokens = row["tokens"]
    return f"goal {row['goal']}, prompts of {prompt} tokens and {tokens} after them"


def with_row(rows: Sequence[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with another one, in the place of an older one of the same kind."""
    known_by = ("model", "device", "goal")
    same = [[row[name] for name in known_by] == [new[name] for name in known_by] for row in rows]
    return [new if is_it else row for row, is_it in zip(rows, same, strict=True)] + ([] if any(same) else [new])


def with_table(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with the table of these rows."""
    return page_tables.with_lines(page, "tuning.py", lines(rows))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if there is no such file."""
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []


def write(path: Path, page: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows into both."""
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    page.write_text(with_table(page.read_text(encoding="utf-8"), rows), encoding="utf-8")


def options(given: Sequence[str] | None) -> argparse.Namespace:
    """What is to be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="the demo models, if none is given")
    parser.add_argument("--device", default="none", help="none, loopback, the size of one such as 300MiB, or a name")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each model (default 10)")
    parser.add_argument("--goal", default="chat")
    parser.add_argument("--n-prompt", type=int)
    parser.add_argument("--n-gen", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--write-docs", action="store_true", help="docs/tuning.json, and docs/tune.md from it")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None, results: Path = RESULTS, page: Path = PAGE) -> None:
    """Tune, print, and write."""
    chosen = options(given)
    rows = read(results) if chosen.write_docs else []
    wanted = [(model, chosen.device) for model in chosen.models] or demo_models()
    for model, device in wanted if chosen.minutes > 0 else ():
        begun = time.monotonic()
        found = moebind.tune(
            model,
            goal=chosen.goal,
            minutes=chosen.minutes,
            devices=[] if device == "none" else [device],
            n_prompt=chosen.n_prompt,
            n_generate=chosen.n_gen,
            resume=chosen.resume,
        )
        print(found, flush=True)
        rows = with_row(rows, result(found, device, (time.monotonic() - begun) / 60))
        if chosen.write_docs:
            write(results, page, rows)
    if chosen.write_docs:
        write(results, page, rows)
    print("", *lines(rows), sep="\n")


if __name__ == "__main__":
    main()
