"""Reports as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reports
from reports import row

from moebind.bench import OffloadReport


@pytest.fixture
def report() -> OffloadReport:
    return reports.report()


def test_the_table_has_the_form_of_the_published_one(report: OffloadReport) -> None:
    lines = report.to_markdown().splitlines()
    assert lines[0] == "**m.gguf (3.00 GiB)**"
    head, ruler, first, second, broken = lines[2:7]
    assert head.startswith("| placement | device, GiB | seen from outside, GiB | saved | host, GiB | prompt, ")
    assert ruler == "| " + " | ".join(["---"] * (head.count("|") - 1)) + " |"
    assert r"| all \| everything | 24.00 | 24.25 |  |" in first
    assert "| 1.00 | 1.25 | 95.8% |" in second
    assert "| 1.3e-03 | 99.0% | 3 of 8 |" in second
    assert broken == "| broken | failed: it broke |"
    printed = "\n".join(lines[7:])
    for part in (
        "SHA-256 " + "f" * 64,
        "llama.cpp 1 (abc)",
        "AVX",
        "550.1",
        "A card",
        "4 of 8 cores",
        "`moebind bench",
    ):
        assert part in printed


def test_conditions_are_those_of_the_rows(report: OffloadReport) -> None:
    first, second, broken = report.rows
    rows = (
        replace(first, date="2025-12-30T00:00:00+00:00", load_average=0.25),
        replace(second, load_average=2.0),
        broken,
    )
    resumed = replace(report, rows=rows)
    assert "date: 2025-12-30T00:00:00+00:00 to 2026-01-01T00:00:00+00:00\n" in str(resumed)
    assert "load at the start: 0.25 to 2.00\n" in str(resumed)
    # One date is told once; a load that no row knows is not made up.
    assert "date: 2026-01-01T00:00:00+00:00\n" in str(report)
    assert "load at the start" not in str(report)
    assert "load at the start: 0.25\n" in str(replace(report, rows=rows[:1]))


def test_conditions_are_told_in_words(report: OffloadReport) -> None:
    second = report.rows[1]
    assert second.agreement is not None
    printed = str(report)
    assert "of 100 positions of 8 prompts, with all | everything" in printed
    assert "at most 4096 bytes off" in printed
    one = replace(second, agreement=replace(second.agreement, n_positions=1, n_prompts=1, mean_kl=0.0))
    one = replace(one, predicted=one.allocated)
    context = {"context_params": {"n_threads": 1}}  # what is the default is not carried
    first = replace(report.rows[0], predicted=one.allocated, allocated=one.allocated, agreement=one.agreement)
    printed = str(replace(report, rows=(first, one), settings={**report.settings, **context}))
    assert "of 1 position of 1 prompt, with all | everything" in printed
    assert "plan against allocation: exact" in printed
    assert "context: n_ctx 512, n_threads 1\n" in printed
    assert "0.0e+00" not in printed
    assert "  0  " in printed


def test_printed(report: OffloadReport) -> None:
    lines = str(report).splitlines()
    head, first, second = lines[2:5]
    assert len(head) == len(second)
    assert first.rstrip() == first  # it is not compared with itself
    assert head.index("host, GiB") + len("host, GiB") == first.index("1.00  ") + len("1.00")
    assert lines[5].endswith("failed: it broke")
    small = replace(report, rows=(row("a", 2**20, 0.0),), reference="a")
    assert "device, MiB" in str(small)
    none = replace(report, rows=report.rows[2:], reference=None)
    assert "failed: it broke" in str(none)
    assert "failed: it broke" in none.to_markdown()
    assert str(replace(report, rows=(), reference=None))
