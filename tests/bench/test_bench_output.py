"""The folder of a benchmark."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import reports

from moebind.bench import OffloadReport
from moebind.bench.output import Output


def test_without_an_output_nothing_stays() -> None:
    with ExitStack() as stack:
        output = Output.of(None, stack)
        assert os.path.isdir(output.folder)
        assert output.report is output.checksums is None
        output.write(reports.report())
        assert os.listdir(output.folder) == []
    assert not os.path.exists(output.folder)


@pytest.mark.parametrize(
    ("name", "report", "folder"), [("out", "out/report.json", "out"), ("a.json", "a.json", "a.files")]
)
def test_a_folder_or_a_file_beside_one(tmp_path: Path, name: str, report: str, folder: str) -> None:
    with ExitStack() as stack:
        output = Output.of(tmp_path / name, stack)
        assert (output.report, output.folder) == (str(tmp_path / report), str(tmp_path / folder))
        assert output.checksums == str(tmp_path / folder / "checksums.json")
        output.write(reports.report())
    assert OffloadReport.load(tmp_path / report) == reports.report()
    with ExitStack() as stack:
        again = Output.of(tmp_path / name, stack)  # a report is gone on with
        assert again.report == output.report


def test_a_folder_may_be_called_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with ExitStack() as stack:
        output = Output.of(tmp_path / "a.json", stack)
    assert (output.report, output.folder) == (str(tmp_path / "a.json/report.json"), str(tmp_path / "a.json"))


def test_logits_of_each_placement_have_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        output = Output.of("out", stack)
    assert output.logits("0123456789abcdef" * 4) == str(tmp_path / "out/logits-0123456789abcdef.npz")


def test_what_is_no_report_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}", encoding="utf-8")
    (tmp_path / "file").touch()
    with ExitStack() as stack:
        with pytest.raises(ValueError, match="is not a report"):
            Output.of(tmp_path / "mine.json", stack)
        with pytest.raises(ValueError, match="which is a file"):
            Output.of(tmp_path / "file", stack)
        for wrong, error in ((3, TypeError), ("", ValueError), ("a\0", ValueError)):
            with pytest.raises(error, match="output"):
                Output.of(wrong, stack)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine.json"]
