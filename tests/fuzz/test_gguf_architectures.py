"""Models of some architectures load, and no change of theirs ends the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import gguf_architectures
from gguf_recipes import NOT_MADE


@pytest.mark.timeout(600)
def test_no_change_of_an_architecture_ends_the_process() -> None:
    chosen = ["qwen3moe", "gemma3", "mamba2", "afmoe", "olmo2"]
    completed, outcomes, findings = gguf_architectures.examine(chosen)
    assert completed == dict.fromkeys(chosen, "works")
    assert findings == []
    assert outcomes["works"] > 20
    assert outcomes["refused"] > 100


@pytest.mark.timeout(600)
def test_all_are_made_but_those_that_are_told(tmp_path: Path) -> None:
    vocabulary = gguf_architectures.vocabulary_in(tmp_path)
    loader = gguf_architectures.Loader(tmp_path)
    outcomes = {
        name: gguf_architectures.complete(gguf_architectures.Candidate.of(name, vocabulary), loader.outcome)
        for name in gguf_architectures.names()
    }
    loader.close()
    assert {name for name, outcome in outcomes.items() if outcome != "works"} == {*NOT_MADE}


def test_the_architectures_are_read_from_the_source() -> None:
    assert {"llama", "qwen3moe", "phimoe", "gpt-oss"} < set(gguf_architectures.names())
