"""benchmarks/engine.py: the rounds that it measures, and the tables that it writes into the page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import engine  # benchmarks/engine.py
import engine_report
import page_tables
import programs

from moebind import Model, ModelParams

PAGE = f"before\n{page_tables.begin('engine.py')}\nold\n{page_tables.END}\nafter\n"


def test_the_page_has_the_tables_of_the_results() -> None:
    page = engine_report.PAGE.read_text(encoding="utf-8")
    assert engine_report.with_tables(page, engine_report.read(engine_report.RESULTS)) == page


def measure(path: Path, tmp_path: Path, *arguments: str) -> str:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    engine.main([str(path), "--threads", "1", "--tokens", "2", *arguments], tmp_path / "results.json", page)
    return page.read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "tiny.gguf", tiny.Shape())


def test_rounds_go_on_until_it_is_decided(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, firsts = iter([96.0, 98.0] * 9 + [98.0] * 7), iter(range(1, 99))
    monkeypatch.setattr(engine, "native_speed", lambda *given: 100.0)
    monkeypatch.setattr(engine, "our_speed", lambda model, threads, n, tokens: (98.0 if n == 8 else next(ours), 2.0))
    monkeypatch.setattr(engine, "first_token", lambda model, threads, running: next(firsts) / 1000)
    monkeypatch.setattr(engine, "pauses", lambda model, threads, n, chunk: (0.02, 0.3, 1.5, 20.0))
    options = ("--write-docs", "--most", "9", "--prompt", "100", "--chunks", "16", "512")
    written = measure(path, tmp_path, *options)
    assert "| 8 texts : llama-batched-bench | 0.980 | 0.980 to 0.980 | 7 | at least 0.97 | reached |" in written
    assert "| 16 texts : llama-batched-bench | 0.980 | 0.960 to 0.980 | 9 | at least 0.97 | not decided |" in written
    assert "| first token of 30, nothing else running | 9.00 ms |" in written
    assert "Three running texts, and a prompt of 100 tokens (milliseconds):" in written
    assert "| 16 | 20 | 300 | 1,500 | 20,000 |" in written
    assert "| whole | 20 | one pause | 1,500 | 20,000 |" in written
    assert ", tiny.gguf, 1 thread(s), " in written
    assert "\n- The load of the machine was " in written
    # What is measured later takes the place of its own part only; without measuring, the same page.
    again = measure(path, tmp_path, "--write-docs", "--sequences", "--chunks", "--rounds", "1", "--most", "1")
    assert "| 8 texts : llama-batched-bench | 0.980 |" in again
    assert "| first token of 30, nothing else running | 19.0 ms | 19.0 to 19.0 | 1 |  | too few pairs |" in again
    assert measure(path, tmp_path, "--write-docs", "--rounds", "0") == again
    assert measure(path, tmp_path, "--rounds", "0") == PAGE


def test_what_is_missing_is_said() -> None:
    found = "\n".join(engine_report.lines({"groups": {}, "pauses": None}))
    assert "| 8 texts : llama-batched-bench |  |  | 0 | at least 0.97 | not measured yet |" in found


def test_the_page_has_no_place_for_other_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        engine.options(["--write-docs", "--sequences", "8", "4"])
    assert "the page has 8 and 16 sequences, and no place for 4; leave one out" in capsys.readouterr().err
    assert engine.options(["--sequences", "4"]).sequences == [4]


@pytest.mark.thorough
def test_what_is_measured() -> None:
    path = programs.demo_model(dense=True)  # a tiny one of random weights would end its text at once
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0)) as model:
        asked = engine.Asked(path, model, 1, 4)
        for running in (0, 2):
            assert asked.ask("first token", str(running))[f"first_{running}_ms"] > 0
        shares = asked.ask("share", "2")
        assert 0 < shares["inside"] < shares["all"]
        assert asked.ask("engine", "2")["engine"] > 0
