"""What benchmarks/engine.py compares; its results as a file of JSON, and from that the tables of docs/engine.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import page_tables
import speed_report
from speed_rows import Group, Measured, Row

from moebind._core.tables import Column, markdown_table

RESULTS, PAGE = page_tables.DOCS / "engine.json", page_tables.DOCS / "engine.md"
#: How many texts are written at once, in the page.
SEQUENCES = (8, 16)
#: What a batch of an engine is to reach beside llama-batched-bench.
TARGET = 0.97
#: Texts that are running when a request of so many tokens comes.
RUNNING, SHORT = 7, 30
PAUSES = [
    Column("`prompt_chunk`"),
    Column("pause before it comes", ".0f"),
    Column("median pause meanwhile"),
    Column("longest", ",.0f"),
    Column("until its first token", ",.0f"),
]


def groups(sequences: Sequence[int] = SEQUENCES) -> list[Group]:
    """What takes turns in rounds, and the rows that come of it."""
    beside = [
        Group(
            f"{n} texts",
            [("llama-batched-bench", str(n)), ("engine", str(n))],
            [Row(f"{n} texts : llama-batched-bench", "engine", "batched_bench", TARGET)],
        )
        for n in sequences
    ]
    shares = [
        Group(
            f"share of {n} texts",
            [("share", str(n))],
            [Row(f"{n} texts, one thread: time in `llama_decode` : all of it", "inside", "all", unit="s")],
        )
        for n in sequences
    ]
    loaded = Group(
        "first token",
        [("first token", "0"), ("first token", str(RUNNING))],
        [
            Row(f"first token of {SHORT}, nothing else running", "first_0_ms", unit="ms"),
            Row(f"first token of {SHORT}, {RUNNING} texts running", f"first_{RUNNING}_ms", unit="ms"),
            Row(f"first token, {RUNNING} texts running : none", f"first_{RUNNING}_ms", "first_0_ms", unit="ms"),
        ],
    )
    return [*beside, *shares, loaded]


def read(path: Path) -> dict[str, Any]:
    """The results in a file; none if there is no such file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {"groups": {}, "pauses": None}


def write(path: Path, page: Path, results: Mapping[str, Any]) -> None:
    """Write the results into both."""
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page.write_text(with_tables(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def with_tables(page: str, results: Mapping[str, Any]) -> str:
    """The page with the tables of these results."""
    return page_tables.with_lines(page, "engine.py", lines(results))


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Both tables, and with what they were measured."""
    yield from markdown_table(speed_report.COLUMNS, _rows(results["groups"]))
    known = list(results["groups"].values())
    if known:
        loads = [each["load"] for each in known]
        yield ""
        yield from (f"- {about}." for about in dict.fromkeys(each["conditions"] for each in known))
        yield f"- The load of the machine was {min(loads):.0f} to {max(loads):.0f} before."
    pauses = results["pauses"]
    if pauses is not None:
        yield ""
        yield f"Three running texts, and a prompt of {pauses['prompt']:,} tokens (milliseconds):"
        yield ""
        yield from markdown_table(PAUSES, [_pauses(row) for row in pauses["rows"]])
        yield ""
        yield f"- {pauses['conditions']}."


def _rows(known: Mapping[str, Any]) -> Iterator[list[object]]:
    for group in groups():
        found = known.get(group.name, {"rounds": [], "failures": {}})  # not measured yet
        for row in group.rows:
            yield speed_report.cells(group, row, Measured(found["rounds"], found["failures"]))


def _pauses(row: Mapping[str, Any]) -> list[object]:
    chunk = "whole" if row["whole"] else str(row["chunk"])
    # A prompt that is not cut makes one pause.
    middle = "one pause" if row["whole"] else f"{row['median']:,.0f}"
    return [chunk, row["before"], middle, row["longest"], row["first"]]
