"""Models of some architectures load, and no change of theirs ends the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import gguf_architectures


@pytest.mark.timeout(600)
def test_no_change_of_an_architecture_ends_the_process() -> None:
    chosen = ["qwen3moe", "gemma3", "mamba2", "afmoe", "olmo2"]
    completed, outcomes, findings = gguf_architectures.examine(chosen)
    assert completed == dict.fromkeys(chosen, "works")
    assert findings == []
    assert outcomes["works"] > 20
    assert outcomes["refused"] > 100


def test_the_architectures_are_read_from_the_source() -> None:
    assert {"llama", "qwen3moe", "phimoe", "gpt-oss"} < set(gguf_architectures.names())
