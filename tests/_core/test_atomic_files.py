"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from moebind._core import atomic_files


@pytest.mark.parametrize("fails", ["fsync", "replace", "fchmod"])
def test_any_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(5, "a failing disk")

    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError, match="a failing disk"):
        atomic_files.write_whole(str(tmp_path / "file"), [b"new"])
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_synchronised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def open_files_only(path: str, *rest: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return really_open(path, *rest)

    monkeypatch.setattr(os, "open", open_files_only)
    atomic_files.write_whole(str(tmp_path / "file"), [b"new"])
    assert (tmp_path / "file").read_bytes() == b"new"


def test_several_parts_are_one_file(tmp_path: Path) -> None:
    parts = [b"", b"a", bytearray(b"bc"), memoryview(b"d"), np.arange(3, dtype=np.uint8)]
    atomic_files.write_whole(str(tmp_path / "file"), parts)
    assert atomic_files.read_whole(str(tmp_path / "file")) == b"abcd\0\1\2"
