"""Progress bars."""

from __future__ import annotations

import sys

import pytest

from moebind._core.progress import progress_bar


def test_a_bar_is_told_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["first", "second"]
    progress, close = progress_bar(lambda: names[0])
    assert progress(0.25) is True
    assert progress(0.5) is True
    names.reverse()
    assert progress(1.0) is True
    close()
    said = capsys.readouterr().err
    assert "first:   0%|" in said
    assert "second: 100%|" in said
    assert "250%" not in said  # fractions are not added up


def test_a_bar_can_keep_to_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    progress, close = progress_bar("load", only_on_terminals=True)
    assert progress(1.0) is True
    close()
    assert capsys.readouterr().err == ""


def test_a_bar_can_go_when_it_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    ends = []
    for leave in (True, False):
        progress, close = progress_bar("load", leave=leave)
        progress(1.0)
        close()
        ends.append(capsys.readouterr().err.endswith("\n"))
    assert ends == [True, False]


def test_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"pip install 'moebind\[cli\]'"):
        progress_bar("load")
