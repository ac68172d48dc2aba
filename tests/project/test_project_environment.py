"""tools/environment.py says what it does before each step that takes its time."""

from __future__ import annotations

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
            return step("build")
        failing = "--no-index" in words and not any(name == "download" for name, _ in steps)
        return step("--no-index" if failing else "download" if "download" in words else "install")

    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment, "PYTHON", tmp_path / ".venv/bin/python")
    monkeypatch.setattr(environment, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(environment.venv, "create", create)
    monkeypatch.setattr(environment, "run", run)
    environment.main()
    assert [name for name, _ in steps] == ["venv", "--no-index", "download", "install", "build"]
    told = dict(steps)
    for name, begins in (("venv", "making "), ("--no-index", "installing "), ("download", "downloading ")):
        assert told[name].startswith(f"environment: {begins}")
        assert told[name].count("\n") == 1
    assert told["build"].startswith("environment: building moebind ")
    assert capsys.readouterr().out == ""
    steps.clear()
    (tmp_path / ".venv/bin").mkdir()
    (tmp_path / ".venv/bin/python").touch()
    environment.main()
    assert steps == []  # nothing is left to do, and nothing is said
    assert capsys.readouterr().out == ""
