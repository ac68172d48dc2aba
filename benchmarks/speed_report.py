"""The results of benchmarks/speed.py as a file of JSON, and from that the table and the plots of docs/speed.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import page_tables
import speed_growth
from speed_judge import LEAST, Judged
from speed_rows import GROUPS, Group, Measured, Row, judged, verdict

from moebind._core.pictures import TEXT
from moebind._core.tables import Column, markdown_table

DOCS = page_tables.DOCS
COLUMNS = [Column(name) for name in ("what", "median", "interval", "pairs", "target", "result")]
COLOUR = "#3b82c4"
#: Letters stay letters, and the same numbers give the same file.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moebind",
    "font.size": 8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT),
}


def write(path: Path, conditions: Mapping[str, Any], found: Mapping[str, Measured], growth: Mapping[str, Any]) -> None:
    """Write the results, with what ``path`` had of other groups."""
    known = read(path) if path.exists() else {"groups": {}, "growth": {}}
    for name, measured in found.items():
        about = {"conditions": dict(conditions), "rounds": measured.rounds, "failures": measured.failures}
        known["groups"][name] = about
    known["growth"] |= growth
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """What :func:`write` wrote."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """The table, and what belongs below it."""
    yield from markdown_table(COLUMNS, _rows(results))
    yield ""
    conditions = [group["conditions"] for group in results["groups"].values()]
    yield from (f"- {text}" for text in _distinct(about["text"] for about in conditions))
    loads = [load for about in conditions for load in about["load"]]
    yield f"- The load of the machine was {min(loads):.0f} to {max(loads):.0f}."
    of_sizes: dict[str, list[str]] = {}
    for group in GROUPS:
        if group.name in results["groups"]:
            sizes = results["groups"][group.name]["conditions"]["sizes"]
            of_sizes.setdefault(_sizes(sizes), []).extend(row.name for row in group.rows)
    for text, rows in of_sizes.items():
        yield f"- {text} In: {'; '.join(rows)}." if len(of_sizes) > 1 else f"- {text}"


def _sizes(sizes: Mapping[str, int]) -> str:
    """The numbers of tokens and texts, as a sentence."""
    return (
        f"Texts of {sizes['tokens']} tokens, prompts of {sizes['prompt']}, {sizes['sequences']} sequences, "
        f"{sizes['texts']} embeddings."
    )


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _rows(results: Mapping[str, Any]) -> Iterator[list[object]]:
    for group in GROUPS:
        known = results["groups"].get(group.name)
        if known is not None:
            measured = Measured(known["rounds"], known["failures"])
            for row in group.rows:
                yield cells(group, row, measured)


def cells(group: Group, row: Row, measured: Measured) -> list[object]:
    """A row of the table."""
    found = judged(row, measured)
    target = "" if row.target is None else f"at {'most' if row.at_most else 'least'} {row.target:g}"
    if found is None:
        reasons = _distinct(measured.failures[f"{a} {b}".strip()] for a, b in group.measures
                            if f"{a} {b}".strip() in measured.failures)  # fmt: skip
        remark = f"not measured: {'; '.join(reasons)}" if reasons else "not measured yet"
        return [row.name, "", "", 0, target, remark]
    unit = "" if row.beside else f" {row.unit}"
    interval = f"{_number(found.low)} to {_number(found.high)}"
    return [
        row.name,
        f"{_number(found.median)}{unit}",
        interval,
        found.pairs,
        target,
        _remark(group, row, measured, found),
    ]


def _remark(group: Group, row: Row, measured: Measured, found: Judged) -> str:
    if found.pairs < LEAST:
        return "too few pairs"
    if row.target is None:
        return "" if found.concluded else "the spread is too wide to conclude"
    together = verdict(group, row, measured)
    return found.verdict if together == found.verdict else f"{found.verdict}; of both: {together}"


def _number(value: float) -> str:
    # Most ratios and their targets are near 1, and differ in the third digit.
    if value < 2:
        return f"{value:.3f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def write_docs(results: Mapping[str, Any], page: Path = DOCS / "speed.md", picture: Path = DOCS / "speed.svg") -> None:
    """Put the table into the page, and draw the plots beside it."""
    page.write_text(with_table(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    if results["growth"]:
        plot(results["growth"], picture)


def with_table(text: str, results: Mapping[str, Any]) -> str:
    """The page with the table of these results."""
    return page_tables.with_lines(text, "speed.py", lines(results))


def plot(growth: Mapping[str, Mapping[str, list[float]]], path: Path) -> None:
    """Draw how costs grow: the median of each size, from 0 on, and the extremes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = [name for name in speed_growth.AXES if name in growth]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.1 * columns, 2.3 * rows), layout="constrained")
        for at, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, at + 1)
            sizes = sorted(growth[name], key=float)
            values = [growth[name][size] for size in sizes]
            middle = [statistics.median(each) for each in values]
            spread = [
                [m - min(v) for m, v in zip(middle, values, strict=True)],
                [max(v) - m for m, v in zip(middle, values, strict=True)],
            ]
            axes.errorbar([float(size) for size in sizes], middle, yerr=spread, marker="o", markersize=3, color=COLOUR,
                          elinewidth=0.8)  # fmt: skip
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.set_xlabel(speed_growth.AXES[name][0])
            axes.set_ylabel(speed_growth.AXES[name][1])
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
