"""Fuzzers for a while: what they did is added up, and a turn that fails is told."""

from __future__ import annotations

from pathlib import Path

import hours
import pytest


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hours, "OUTPUT", tmp_path)
    return tmp_path


def short(monkeypatch: pytest.MonkeyPatch, name: str, arguments: str) -> None:
    """A fuzzer's turns last as long as a test may."""
    known = hours.FUZZERS[name]
    monkeypatch.setitem(hours.FUZZERS, name, hours.Fuzzer(arguments, known.counts, known.pattern, known.kinds))


def test_turns_follow_each_other_and_are_added_up(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short(monkeypatch, "media", "--count 2 --seed {seed}")
    short(monkeypatch, "cycles", "--count 1 --seed {seed}")
    status = hours.main(["development", "media", "cycles", "--minutes", "0.01", "--seed", "5"])
    seed, *_, media, cycles = capsys.readouterr().out.splitlines()
    assert (status, seed) == (0, "seed 5")
    # Seven formats, two of each a turn; as many turns as there was time for, and one at least.
    assert media.startswith("| `tests/fuzz/media.py` | ")
    turns = int(media.split("|")[4].split(",")[0])
    assert turns == len(list(output.glob("development/media-*.txt"))) >= 1
    assert f"| {14 * turns:,} pictures and sounds |" in media
    assert media.endswith(", 0 |")
    assert cycles.endswith(", 0 |")


def test_a_turn_that_fails_is_told(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short(monkeypatch, "media", "--count none")
    assert hours.main(["development", "media", "--minutes", "0.001"]) == 1
    said = capsys.readouterr().out
    assert f"media ended with 2: {output / 'development/media-000.txt'}" in said
    assert "invalid int value: 'none'" in said
    assert said.endswith("| 1, 1 |\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("calls", "seed 3: 57 calls, 42 returned, the others raised what they may"),
        ("threads", "57 times one of 17 things in 5 threads: 0 failed"),
        ("cycles", "57 rounds: 0 failed"),
        ("gguf_mutants", "  56 vocab_only: works\n57 mutants, 0 findings"),
        ("gguf_architectures", "llama 'works'\n1 of 1 work; variants: Counter({'works': 14, 'refused': 43})"),
        ("media", "PNG: refused: 20\nWAV: works: 37"),
        ("forks", "\n57 forks in 6 processes: 0 processes failed"),
    ],
)
def test_numbers_are_found_in_what_a_fuzzer_says(name: str, said: str) -> None:
    assert hours.counted(name, said) == 57


def test_architectures_are_all_taken_in_some_order() -> None:
    import gguf_architectures

    turns, names = hours.turns("gguf_architectures", 3), sorted(gguf_architectures.names())
    taken: list[str] = []
    while len(taken) < len(names):
        taken += next(turns)
    assert sorted(taken) == names != taken


def test_a_fuzzer_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hours.main(["development", "nothing"])
    assert "no fuzzer is called 'nothing': choose from calls, threads," in capsys.readouterr().err
