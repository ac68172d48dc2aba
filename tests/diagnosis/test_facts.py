"""What the system says, and how it is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moebind import DeviceType
from moebind.diagnosis.facts import driver_of, features_of, flags_of, locks_freely, quota_of, read_facts


def test_features() -> None:
    assert features_of("CPU : SSE3 = 1 | AVX = 0 | REPACK = 1 | ") == {"SSE3", "REPACK"}
    assert features_of("CUDA : ARCHS = 900 | CPU : FMA = 1 |") == {"ARCHS", "FMA"}
    assert features_of("") == frozenset()


def test_flags() -> None:
    assert flags_of("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor: 1\nflags : x") == {"fpu", "avx2"}
    assert flags_of("Features : asimd i8mm") == {"asimd", "i8mm"}
    assert flags_of("nothing") == frozenset()


def test_driver() -> None:
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (dvs)\nGCC version: 12.3"
    assert driver_of(line) == "580.82.07"
    assert driver_of("") is None


def test_capabilities() -> None:
    assert locks_freely("Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert not locks_freely("CapEff:\t00000000a80425fb\n".replace("a80425fb", "00000000"))
    assert not locks_freely("")


@pytest.mark.parametrize(
    ("text", "period", "quota"),
    [
        ("150000 100000\n", "", 1.5), ("max 100000", "", None), ("200000", "100000", 2.0), ("-1", "100000", None),
        ("", "", None), ("5 0", "", None), ("x y", "", None),
    ],
)  # fmt: skip
def test_quotas(text: str, period: str, quota: float | None) -> None:
    assert quota_of(text, period) == quota


@given(st.text())
def test_reading_takes_any_text(text: str) -> None:
    features_of(text)
    flags_of(text)
    quota_of(text)
    assert driver_of(text) is None or driver_of(text) in text


def test_this_machine() -> None:
    facts = read_facts()
    lock = (Path(__file__).resolve().parents[2] / "vendor/llama.cpp.lock").read_text(encoding="utf-8")
    assert f"# llama.cpp-commit: {facts.commit}" in lock
    assert {"CPU", "RPC"} <= set(facts.backends)
    assert facts.devices[-1].type is DeviceType.CPU or any(each.type is DeviceType.CPU for each in facts.devices)
    assert facts.cores_allowed == len(os.sched_getaffinity(0)) <= facts.cores
    assert facts.cpu_flags
    assert facts.cpu_features
    assert 0 < facts.memory.free <= facts.memory.capacity
    assert facts.address_space_used > 0
