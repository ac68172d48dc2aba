"""benchmarks/tuning.py: the rows that it keeps, and the table that it writes into the page."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moebind

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests/tuning")]

import page_tables
import tuning as program  # benchmarks/tuning.py
from results import STEPS, made_up

MakeTiny = Callable[..., Path]
BEGIN, END = page_tables.begin("tuning.py"), page_tables.END
PAGE = f"before\n{BEGIN}\nold\n{END}\nafter\n"


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4, n_layer=3)


def row(path: Path, device: str = "none", **changes: Any) -> dict[str, Any]:
    return program.result(made_up(path, **changes), device, 1.26)


def test_the_page_has_the_table_of_the_results() -> None:
    page = program.PAGE.read_text(encoding="utf-8")
    assert program.with_table(page, program.read(program.RESULTS)) == page


def test_a_row(path: Path) -> None:
    assert program.cells(json.loads(json.dumps(row(path, "300MiB")))) == [
        path.name,
        "a worker process of 300MiB",
        "n_ubatch 128, read into memory",
        "100.0 -> 200.0",
        "10.0 -> 13.5",
        "1.35",
        "1.20 to 1.50",
        "9",
        "1.3",
    ]
    assert program.cells(row(path, total=None, steps=STEPS[:1]))[1:] == [
        *("none", "nothing: the defaults", "100.0", "10.0", "1.00", "", "", "1.3"),
    ]


def test_a_newer_row_takes_the_place_of_an_older_one(path: Path) -> None:
    first, second = row(path), row(path, "300MiB")
    newer = {**first, "minutes": 7.0}
    assert program.with_row([first, second], newer) == [newer, second]
    assert program.with_row([first], second) == [first, second]
    assert program.with_row([], first) == [first]


def test_below_the_table_is_with_what_it_was_measured(path: Path) -> None:
    found = list(program.lines([row(path), row(path, "300MiB")]))
    assert found[-1].startswith(f"- {path.name}: goal chat, prompts of 256 tokens and 64 after them. 2026-11-29, ")
    assert len(found) == 2 + 2 + 2


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(SystemExit, match="the page has no place for the table"):
        program.with_table("before\nafter\n", [])


def test_it_tunes_and_writes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def tune(model: Path, **arguments: Any) -> moebind.Tuning:
        asked.append(arguments)
        return made_up(model)

    monkeypatch.setattr(moebind, "tune", tune)
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(PAGE, encoding="utf-8")
    program.main([str(path), "--minutes", "3", "--device", "64MiB", "--n-gen", "4", "--write-docs"], results, page)
    assert asked == [
        {"goal": "chat", "minutes": 3.0, "devices": ["64MiB"], "n_prompt": None, "n_generate": 4, "resume": False}
    ]
    written = page.read_text(encoding="utf-8")
    assert written.startswith(f"before\n{BEGIN}\n\n| model | device |")
    assert written.endswith(f"\n\n{END}\nafter\n")
    assert f"| {path.name} | a worker process of 64MiB |" in written
    # Without measuring, the same page; and without --write-docs, nothing is written.
    page.write_text(PAGE, encoding="utf-8")
    program.main(["--minutes", "0", "--write-docs"], results, page)
    assert page.read_text(encoding="utf-8") == written
    program.main([str(path)], results, page)
    assert len(asked) == 2
    assert len(program.read(results)) == 1
