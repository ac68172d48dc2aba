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


def test_a_link_stays_one_and_a_mode_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o604)
    (tmp_path / "link").symlink_to("real")
    atomic_files.write_whole(str(tmp_path / "link"), [b"new"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o604


def test_what_is_no_regular_file_is_neither_read_nor_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="not a regular file|Is a directory"):
            atomic_files.read_whole(str(path))
        with pytest.raises(OSError, match="not a regular file"):
            atomic_files.write_whole(str(path), [b""])
    with pytest.raises(FileNotFoundError):
        atomic_files.read_whole(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        atomic_files.write_whole(str(tmp_path / "none" / "file"), [b""])


def test_a_signature_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = atomic_files.signature(str(path))
    assert atomic_files.signature(str(path)) == first
    path.write_bytes(b"more")
    assert atomic_files.signature(str(path)) != first
    atomic_files.write_whole(str(path), [b"one"])
    assert atomic_files.signature(str(path)) != first  # another file of this name
    with pytest.raises(FileNotFoundError):
        atomic_files.signature(str(tmp_path / "none"))


def test_the_same_file_through_links(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).touch()
    os.link(tmp_path / "one", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("one")
    others = [str(tmp_path / name) for name in ("none", "other", "one")]
    for name in ("one", "hard", "soft"):
        assert atomic_files.same_file(str(tmp_path / name), others) == others[2]
    assert atomic_files.same_file(str(tmp_path / "other"), others[::2]) is None
    assert atomic_files.same_file(str(tmp_path / "none"), others) is None


def test_what_was_staged_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"old")
    with atomic_files.staged(str(tmp_path / "target")) as stage:
        assert os.path.dirname(stage) == str(tmp_path)
        for name in ("a", "b"):
            (Path(stage) / name).write_bytes(b"new")
        assert (tmp_path / "b").read_bytes() == b"old"
        assert not (tmp_path / "a").exists()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "b").read_bytes() == b"new"


def test_nothing_that_was_staged_stays_after_an_exception(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(LookupError), atomic_files.staged(str(tmp_path / "a")) as stage:
        (Path(stage) / "a").write_bytes(b"new")
        raise LookupError
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_places_where_nothing_can_be_staged(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), atomic_files.staged(str(tmp_path)):
        pass
    with pytest.raises(FileNotFoundError, match="the folder of"), atomic_files.staged(str(tmp_path / "none" / "a")):
        pass
    assert os.listdir(tmp_path) == []
