"""The run of llama.cpp's own tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import upstream
from upstream import Outcome


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(upstream.MODELS, str(tmp_path))
    return tmp_path


def test_their_options_are_said_in_moebinds(models: Path) -> None:
    given = "--port 8 --temp 0.8 --offline --hf-repo ggml-org/models --hf-file bert-bge-small/ggml-model-f16.gguf "
    given += "--no-slots --alias bert --parallel 2 --reranking --api-key sesame -fa on"
    ours, theirs, keys = upstream.translated(given.split())
    assert Path(ours[0]).name == "bert.gguf"
    assert Path(ours[0]).readlink() == models / "2.gguf"
    expected = "--embeddings --pooling rank --no-kv-unified --port 8 --parallel 2 -fa on --threads 1"
    assert ours[1:] == expected.split()
    assert theirs == ["--temp", "0.8", "--no-slots"]
    assert keys == ["sesame"]


def test_a_router_has_a_folder(models: Path) -> None:
    ours, theirs, keys = upstream.translated(["--models-max", "2"])
    assert ours == ["--models-dir", str(models / upstream.SEVERAL), "--threads", "1"]
    assert (theirs, keys) == (["--models-max", "2"], [])


def test_a_model_without_a_stand_in_is_told() -> None:
    with pytest.raises(SystemExit, match="no stand-in for someone/large:q8"):
        upstream.translated(["--hf-repo", "someone/large", "--hf-file", "q8"])


def test_the_table_and_the_differences() -> None:
    plain = {"unit/test_a.py::x": Outcome("passed", ""), "unit/test_a.py::y": Outcome("failed", "words")}
    ours = {"unit/test_a.py::x": Outcome("failed", "moebind: no"), "unit/test_a.py::y": Outcome("failed", "words")}
    assert upstream.table(plain, ours)[2:] == ["| a | 1 | 0 | 1 | 0 |"]
    assert upstream.differences(plain, ours) == ["test_a.py::x: llama-server only: moebind: no"]
    assert upstream.differences(plain, plain) == []


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_it_runs() -> None:
    done = subprocess.run(
        [sys.executable, upstream.__file__, "--only", "tokenize"], capture_output=True, text=True, check=True
    )
    assert "| tokenize | 3 | 3 | 0 | 0 |" in done.stdout
