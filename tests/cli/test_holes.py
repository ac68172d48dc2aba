"""Files of models in which weights were never written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import shapes
import tiny
from commands import Capture, run

from moebind import ModelLoadError
from moebind.cli.holes import check_written

MakeTiny = Callable[..., Path]


@pytest.fixture
def hollow(tmp_path: Path) -> Path:
    """A header, and nothing behind it."""
    path = shapes.write(tmp_path / "hollow.gguf", shapes.small(shapes.SHAPES["gpt-oss-20b-mxfp4"]))
    if os.stat(path).st_blocks * 512 > os.path.getsize(path) // 2:
        pytest.skip("this file system has no holes")
    return path


def test_there_is_no_text_without_weights(hollow: Path, capsys: Capture) -> None:
    for command in (["generate", hollow, "w5", "-n", 2], ["chat", hollow, "-n", 2], ["serve", hollow, "--port", 0]):
        assert run(*command, "-c", 256, "-ngl", 0) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"moebind: {hollow} has no weights in its second half: ")
        assert said.err.count("\n") == 1
    assert run("plan", hollow, "-c", 256, "-ngl", 0) == 0


def test_half_a_download(tiny_path: MakeTiny, tmp_path: Path) -> None:
    whole = tiny_path(n_expert=4).read_bytes()
    path = tmp_path / "half.gguf"
    for written, is_enough in ((len(whole) // 3, False), (2 * len(whole) // 3, True)):
        with path.open("wb") as file:
            file.write(whole[:written])
            file.truncate(len(whole))
        if is_enough:
            check_written(str(path))
        else:
            with pytest.raises(ModelLoadError, match=r"half\.gguf has no weights in its second half"):
                check_written(str(path))


def test_what_is_whole_or_left_to_the_load(tiny_path: MakeTiny, tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tiny_path(), tmp_path / "missing.gguf", tmp_path, tmp_path / "empty.gguf", tmp_path / "pipe.gguf"):
        check_written(str(path))
    check_written("hf://someone/some-model/some.gguf")


def test_a_vocabulary(tmp_path: Path, capsys: Capture) -> None:
    path = tiny.write(tmp_path / "vocabulary.gguf", tiny.Shape(), without="")
    for command in (["generate", path, "a"], ["plan", path], ["fit", path]):
        assert run(*command, "-c", 256) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"moebind: {path} has no weights, only a vocabulary: moebind tokenize takes that")
        assert "llama.cpp" not in said.err
    assert run("tokenize", path, "it") == 0
