"""Reports: as objects, JSON, tables and pictures."""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path

import pytest
import reports

from moebind.bench import OffloadReport


@pytest.fixture
def report() -> OffloadReport:
    return reports.report()


def test_json_round_trip(report: OffloadReport, tmp_path: Path) -> None:
    text = json.dumps(report.to_dict(), allow_nan=False)
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    assert OffloadReport.load(tmp_path) == report
    assert OffloadReport.load(tmp_path / "report.json").to_dict() == json.loads(text)


def test_notebooks_show_a_picture_and_the_table(report: OffloadReport, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = report._repr_html_()
    assert shown.count('<img style="max-width: 100%" alt="" src="data:image/svg+xml;base64,') == 1
    assert html.escape(str(report)) in shown
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    without = report._repr_html_()
    assert "<img" not in without and html.escape(str(report)) in without


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"form": 2}', "null", "nonsense", '{"form": 1, "rows": [{}]}'])
def test_other_files_are_no_reports(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.json is not a report"):
        OffloadReport.load(tmp_path / "x.json")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OffloadReport.load(tmp_path)
    with pytest.raises(TypeError, match="path"):
        OffloadReport.load(3)  # type: ignore[arg-type]


def test_reports_of_before_there_were_loads_of_rows(report: OffloadReport, tmp_path: Path) -> None:
    data = json.loads(json.dumps(report.to_dict()))
    for each in data["rows"]:
        del each["load_average"]
    (tmp_path / "report.json").write_text(json.dumps(data), encoding="utf-8")
    assert OffloadReport.load(tmp_path) == report
