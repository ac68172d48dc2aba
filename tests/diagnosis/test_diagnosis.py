"""The report of doctor()."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from moebind import ContextParams, Diagnosis, Finding, ModelParams, Severity
from moebind._core.pictures import html_of
from moebind.diagnosis.facts import Facts

MakeTiny = Callable[..., Path]


def test_a_diagnosis(tiny_path: MakeTiny) -> None:
    diagnosis = moebind.doctor(tiny_path(), ModelParams(), ContextParams(n_threads=500))
    assert isinstance(diagnosis, Diagnosis)
    assert diagnosis[0].severity is max(finding.severity for finding in diagnosis)
    assert not diagnosis.ok
    assert len(diagnosis) == len(list(diagnosis)) == len(diagnosis[:])
    assert any("n_threads is 500" in finding.what for finding in diagnosis)
    report = str(diagnosis)
    assert report.startswith(f"moebind {moebind.__version__}, llama.cpp {moebind.llama_cpp_version}")
    for finding in diagnosis:
        assert str(finding) in report
    assert repr(diagnosis).startswith("<Diagnosis: 0 problems, ")
    with pytest.raises(IndexError):
        diagnosis[99]
    assert Diagnosis(Facts(), []).ok


def test_the_most_severe_comes_first() -> None:
    made = [Finding("one", "why", "do"), Finding("two", "why", "do", Severity.PROBLEM)]
    assert [finding.what for finding in Diagnosis(Facts(), made)] == ["two", "one"]
    with pytest.raises(TypeError, match="made by doctor"):
        Diagnosis(Facts(), ["one"])  # type: ignore[list-item]


def test_notebooks_show_what_is_printed() -> None:
    diagnosis = Diagnosis(Facts(cuda_verdict="out: <b>not found</b>"), [Finding("a < b", "why", "do")])
    assert diagnosis._repr_html_() == html_of(str(diagnosis))
    assert "a &lt; b" in diagnosis._repr_html_()
