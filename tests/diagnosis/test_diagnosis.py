"""The report of doctor()."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transcripts import DOCS, assert_shows

import moebind
from moebind import ContextParams, Device, DeviceType, Diagnosis, Finding, ModelParams, Severity
from moebind._core.pictures import html_of
from moebind.backend.host_memory import HostMemory
from moebind.diagnosis.facts import Facts
from moebind.diagnosis.findings import PlannedLoad, findings

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


def test_the_report_that_the_page_shows() -> None:
    """It is of a machine with a card that this build cannot use."""
    [shown] = re.findall(r"^```text\n(.*?)^```", (DOCS / "doctor.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    total, free = 24 * 2**30, 22 * 2**30
    facts = Facts(
        llama_cpp="0.6.0-dev",
        commit="b11549",
        backends=("RPC", "CPU"),
        cuda_verdict="out: not found: cuBLAS (package nvidia-cublas); the headers of cuBLAS (package nvidia-cublas)",
        vulkan_verdict="out: not found: the compiler of shaders glslc (package glslc)",
        devices=(Device(0, "CPU", "AMD EPYC", "CPU", DeviceType.CPU, total, free, total),),
        nvidia_cards=1,
        cores=2,
        cores_allowed=2,
        memory=HostMemory(total, free),
        memory_total=total,
    )
    asked = PlannedLoad(None, ModelParams(n_gpu_layers=0), ContextParams(n_threads=1, n_threads_batch=1))
    assert_shows(shown, str(Diagnosis(facts, findings(facts, asked))) + "\n")
