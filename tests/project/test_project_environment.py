"""tools/environment.py says what it does before each step that takes its time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools")]
import environment


def test_every_step_is_told_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[tuple[str, str]] = []

    def step(name: str) -> int:
        steps.append((name, capsys.readouterr().out))
        return 1 if name == "--no-index" else 0

    def create(folder: Path, with_pip: bool) -> None:
        assert with_pip
        folder.mkdir()
        step("venv")

    def run(*command: str | Path, **options: object) -> int:
        words = [str(each) for each in command]
        if "--editable" in words:
            install(editable=True)
            return step("build")
        failing = "--no-index" in words and not any(name == "download" for name, _ in steps)
        return step("--no-index" if failing else "download" if "download" in words else "install")

    def install(editable: bool, folder: Path = ROOT) -> None:
        record = tmp_path / ".venv/lib/python3.12/site-packages/moebind-0.1.0.dist-info/direct_url.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        about = {"editable": True} if editable else {}
        record.write_text(json.dumps({"url": folder.as_uri(), "dir_info": about}), encoding="utf-8")

    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment, "PYTHON", tmp_path / ".venv/bin/python")
    monkeypatch.setattr(environment, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(environment.venv, "create", create)
    monkeypatch.setattr(environment, "run", run)
    monkeypatch.setattr(environment, "build", run)
    environment.main()
    assert [name for name, _ in steps] == ["venv", "--no-index", "download", "install", "build"]
    told = dict(steps)
    for name, begins in (("venv", "making "), ("--no-index", "installing "), ("download", "downloading ")):
        assert told[name].startswith(f"environment: {begins}")
        assert told[name].count("\n") == 1
    assert told["build"].startswith("environment: building moebind (6 CPU minutes for the CPU; on ")
    assert capsys.readouterr().out == ""
    steps.clear()
    (tmp_path / ".venv/bin").mkdir()
    (tmp_path / ".venv/bin/python").touch()
    environment.main()
    assert steps == []  # nothing is left to do, and nothing is said
    assert capsys.readouterr().out == ""
    # What a build is made with has come: the next one has it.
    monkeypatch.setattr(environment.shutil, "which", lambda name: "/usr/bin/glslc" if name == "glslc" else None)
    environment.main()
    assert [name for name, _ in steps] == ["build"]
    steps.clear()
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    environment.main()
    assert [name for name, _ in steps] == ["build"]
    # What was installed in its place would not follow the checkout.
    for another in ({"editable": False}, {"editable": True, "folder": tmp_path}):
        steps.clear()
        install(**another)  # type: ignore[arg-type]
        environment.main()
        assert [name for name, _ in steps] == ["build"]
        assert "the moebind in .venv is not this checkout: it was installed there in its place" in steps[0][1]


NINJA = """
print("  --   CUDA       out: not found", "  --   Vulkan     in: headers", "  -- other", sep="\\n")
for at in range(1, {n} + 1):
    print(f"  [{{at}}/{n}] Building CXX object x.cpp.o")
if {fails}:
    print("FAILED: x.cpp.o", "x.cpp: error: it is wrong", sep="\\n")
    raise SystemExit(3)
"""


def test_a_build_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "VENV", tmp_path)
    log = tmp_path / "build.log"
    assert environment.build(sys.executable, "-c", NINJA.format(n=200, fails=False)) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == f"environment: compiling 200 files (CUDA out, Vulkan in); all output goes to {log}"
    assert [line.split(" after ")[0] for line in others] == [f"environment: {n} of 200" for n in range(20, 201, 20)]
    assert log.read_text(encoding="utf-8").count("Building CXX") == 200
    # Of a small one nothing is said.
    assert environment.build(sys.executable, "-c", NINJA.format(n=9, fails=False)) == 0
    assert capsys.readouterr().out == ""
    assert environment.build(sys.executable, "-c", NINJA.format(n=9, fails=True)) == 3
    assert capsys.readouterr().out == "FAILED: x.cpp.o\nx.cpp: error: it is wrong\n"


def test_what_is_to_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOEBIND_CUDA", "MOEBIND_VULKAN", "MOEBIND_UI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment.shutil, "which", lambda name: name)
    assert "40 or more for CUDA, 4 for Vulkan, 2 for the web page" in environment.to_build()
    for name in ("MOEBIND_CUDA", "MOEBIND_VULKAN", "MOEBIND_UI"):
        monkeypatch.setenv(name, "OFF")
    assert environment.to_build().startswith("6 CPU minutes for the CPU; on ")
