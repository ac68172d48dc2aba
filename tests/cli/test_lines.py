"""Texts of commands that take several."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from moebind.cli.lines import texts_of


def test_arguments_files_and_standard_input(tmp_path: Path, monkeypatch: Any) -> None:
    assert texts_of(["a", " b "], None) == ["a", " b "]
    file = tmp_path / "texts"
    file.write_bytes("ä one\r\n\n  \ntwo".encode())
    assert texts_of(None, file) == ["ä one", "two"]
    for given in (None, Path("-")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"three\nfour\n")))
        assert texts_of([], given) == ["three", "four"]


def test_none_and_too_many(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "texts"
    file.write_text("\n \n", encoding="utf-8")
    with pytest.raises(ValueError, match="texts has no text; it takes one in each line"):
        texts_of(None, file)
    with pytest.raises(ValueError, match="TEXT is 'a', and --file is given too"):
        texts_of(["a"], file)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(ValueError, match="standard input has no text"):
        texts_of(None, None)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(ValueError, match="there is no text: give some"):
        texts_of(None, None)
