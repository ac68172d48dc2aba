"""tools/sanitize.py: what it starts programs with, and how it tells reports. Its builds take too long for a test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
import sanitize

ADDRESS = """=================================================================
==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x1 at pc 0x2 bp 0x3 sp 0x4
READ of size 4 at 0x1 thread T0
    #0 0x2 in first a.cpp:3
SUMMARY: AddressSanitizer: heap-use-after-free a.cpp:3 in first
==7==ABORTING
"""
UNDEFINED = """b.cpp:5:7: runtime error: signed integer overflow: 2147483647 + 1
    #0 0x2 in second b.cpp:5
"""
THREAD = """==================
WARNING: ThreadSanitizer: data race (pid=7)
  Write of size 4 at 0x1 by thread T1:
    #0 third c.cpp:9
SUMMARY: ThreadSanitizer: data race c.cpp:9 in third
==================
"""


def test_each_kind_is_told_once_with_its_first_report(tmp_path: Path) -> None:
    (tmp_path / "report.7").write_text(UNDEFINED + UNDEFINED.replace("second", "other") + ADDRESS, encoding="utf-8")
    (tmp_path / "report.8").write_text(THREAD + THREAD + "ThreadSanitizer: reported 2 warnings\n", encoding="utf-8")
    (tmp_path / "report.9").write_text("==9==AddressSanitizer CHECK failed: no summary\n", encoding="utf-8")
    (tmp_path / "report.10").touch()
    found = sanitize.reports(tmp_path)
    assert {kind: count for kind, (count, _) in found.items()} == {
        "b.cpp:5:7: runtime error: signed integer overflow: 2147483647 + 1": 2,
        "data race c.cpp:9 in third": 2,
        "heap-use-after-free a.cpp:3 in first": 1,
        "in report.9": 1,
    }
    assert found["heap-use-after-free a.cpp:3 in first"][1] == ADDRESS.partition("\n")[2].strip()
    assert "in second b.cpp:5" in next(iter(found.values()))[1]
    assert found["data race c.cpp:9 in third"][1].count("Write of size") == 1


def test_nothing_reported(tmp_path: Path) -> None:
    assert sanitize.reports(tmp_path) == {}


@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("g++")), reason="there is no GCC for C++")
@pytest.mark.parametrize("kind", sanitize.SANITIZERS)
def test_a_program_runs_with_its_libraries(kind: str, tmp_path: Path) -> None:
    """Not Python: a program that the compiler has instrumented, and that does what it is looking for."""
    sanitizer = sanitize.SANITIZERS[kind]
    allowed = subprocess.run([*sanitizer.prefix, "env", "true"], check=False, capture_output=True, text=True)
    if allowed.returncode:
        pytest.skip(f"{sanitizer.prefix[0]} is not allowed here, as in some containers: {allowed.stderr.strip()}")
    wrong = {
        "address": "char * p = new char[1]; delete[] p; return p[0];",
        "thread": "std::thread t([] { n = 1; }); n = 2; t.join(); return 0;",
    }
    source = tmp_path / "program.cpp"
    source.write_text(f"#include <thread>\nint n;\nint main() {{ {wrong[kind]} }}\n", encoding="utf-8")
    program = tmp_path / "program"
    flags = ["-fsanitize=thread"] if kind == "thread" else ["-fsanitize=address,undefined"]
    built = subprocess.run(
        ["g++", "-O0", "-g", *flags, "-pthread", source, "-o", program], check=False, capture_output=True
    )
    if built.returncode:
        pytest.skip(f"this compiler has no {kind} sanitizer: {built.stderr.decode()[-200:]}")
    reports = tmp_path / "reports"
    reports.mkdir()
    environment = sanitize.environment(sanitizer, reports / "report")
    done = subprocess.run([*sanitizer.prefix, program], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode != 0, done.stderr
    (only,) = sanitize.reports(reports)
    assert only.split()[0] in {"heap-use-after-free", "data"}, done.stderr


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitize, "run", lambda *_, **__: pytest.fail("nothing is started"))
    with pytest.raises(SystemExit, match="this GCC has no libnothing.so; Debian has it in"):
        sanitize.library("libnothing.so")


def test_suppressions_are_there() -> None:
    named = [f"{sanitize.SUPPRESSIONS}/{name}.txt" for name in ("undefined", "thread")]
    assert all(os.path.exists(path) for path in named)
    text = " ".join(" ".join(each.options.values()) for each in sanitize.SANITIZERS.values())
    assert [name for name in named if "{suppressions}/" + os.path.basename(name) not in text] == []
