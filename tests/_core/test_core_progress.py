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


@pytest.mark.thorough
def test_a_notebook_shows_bars() -> None:
    nbformat, nbclient, _ = (
        pytest.importorskip(name, reason="needs the extra [test]") for name in ("nbformat", "nbclient", "ipywidgets")
    )
    program = """
from moebind._core.progress import progress_bar
for only_on_terminals in (False, True):
    progress, close = progress_bar("load", only_on_terminals=only_on_terminals)
    progress(0.5)
    progress(1.0)
    close()
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(program)])
    nbclient.NotebookClient(notebook, timeout=None).execute()
    view = "application/vnd.jupyter.widget-view+json"
    assert [view in output["data"] for output in notebook.cells[0].outputs] == [True, True]
    widgets = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    bars = [each["state"] for each in widgets if each["model_name"] == "FloatProgressModel"]
    assert [(bar["value"], bar["max"], bar["bar_style"]) for bar in bars] == [(100, 100, "success")] * 2
