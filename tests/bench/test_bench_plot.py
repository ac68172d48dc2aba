"""Reports as pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import reports

from moebind.bench import OffloadReport


@pytest.fixture
def report() -> OffloadReport:
    return reports.report()


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_pictures(report: OffloadReport, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"plot.{ending}"
    report.plot(path)
    assert path.stat().st_size > 1000


def test_nothing_to_draw(report: OffloadReport, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        replace(report, rows=report.rows[2:]).plot(tmp_path / "x.png")
