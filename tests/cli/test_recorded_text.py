"""A text that commands compute to see which experts its tokens are sent to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moebind.cli.given import Given
from moebind.cli.recorded_text import record

MakeTiny = Callable[..., Path]


@pytest.fixture
def path(tiny_path: MakeTiny) -> str:
    return str(tiny_path(n_expert=4, n_layer=3))


@pytest.fixture
def given() -> Given:
    return Given({"n_gpu_layers": "0", "threads": 1, "n_ctx": "64"})


def test_a_prompt(path: str, given: Given) -> None:
    recorder = record(path, given, None, "it is", None, 6)
    assert recorder.counts.shape == (3, 4)
    # It goes on behind a token that would end the text; the last layer computes one of the prompt's tokens.
    assert recorder.n_tokens[-1] == 6 + 1
    assert recorder.cache_curve().n_tokens > 0


def test_a_text_is_computed_token_by_token(path: str, given: Given, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("the cat is on the mat", encoding="utf-8")
    assert record(path, given, None, None, file, 5).n_tokens.tolist() == [5, 5, 5]
    file.write_text("the cat is on the mat " * 100, encoding="utf-8")
    assert record(path, given, None, None, file, 10_000).n_tokens[0] == 256  # the room that there is


def test_what_is_refused(path: str, given: Given, tiny_path: MakeTiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--prompt and --file are both given"):
        record(path, given, None, "a", tmp_path / "b", 5)
    with pytest.raises(FileNotFoundError):
        record(path, given, None, None, tmp_path / "b", 5)
    with pytest.raises(ValueError, match="has no experts"):
        record(str(tiny_path()), given, None, None, None, 5)
