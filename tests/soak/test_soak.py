"""The long runs of ``soak.py``, in short; and that they notice what they are for."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import soak

SOAK = Path(__file__).with_name("soak.py")


@pytest.mark.parametrize(
    "arguments",
    [
        ("rounds", "--count", "90", "--warm-up", "30"),
        ("threads", "--minutes", "0.1", "--seconds", "0.3", "--warm-up", "5"),
        ("serve", "--minutes", "0.2", "--warm-up", "5"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_nothing_is_held(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, SOAK, *arguments], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files of others do not count."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_what_grows_is_told() -> None:
    record, kept, me = soak.Record(warm_up=5), [], psutil.Process()
    with contextlib.ExitStack() as files:
        for number in range(20):
            kept.append(bytes([number]) * 150_000)
            files.enter_context(SOAK.open())
            record.add(soak.Held.by(me))
    assert {line.partition(":")[0] for line in record.leaks()} == {"allocated", "resident", "files"}


def test_too_few_rounds_tell_nothing() -> None:
    record = soak.Record(warm_up=5)
    for _ in range(14):
        record.add(soak.Held.by(psutil.Process()))
    assert record.leaks() == ["14 rounds are too few to tell: 15 at least"]


def held(files: int) -> soak.Held:
    return soak.Held(0, 0, files, 1, 0, 0, 0)


@pytest.mark.parametrize(
    "files", [[11] + 9 * [10] + 10 * [10, 11], [11, 10, 10, 10, 10] + 15 * [11]], ids=["now and then", "mostly"]
)
def test_what_is_about_to_end_is_no_leak(files: list[int]) -> None:
    record = soak.Record(warm_up=5)
    for each in files:
        record.add(held(each))
    assert record.leaks() == []


def test_what_is_kept_every_few_rounds_is_told() -> None:
    record = soak.Record(warm_up=5)
    for number in range(30):
        record.add(held(10 + number // 8))
    assert record.leaks() == ["files: 11, then 12"]
