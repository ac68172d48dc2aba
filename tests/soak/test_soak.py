"""The long runs of ``soak.py``, in short; and that they notice what they are for."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from held import Held, Record

SOAK = Path(__file__).with_name("soak.py")


@pytest.mark.thorough
@pytest.mark.timeout(660)
@pytest.mark.parametrize(
    "arguments",
    [
        ("rounds", "--count", "90", "--warm-up", "30"),
        ("threads", "--minutes", "0.1", "--seconds", "0.3", "--warm-up", "5"),
        ("engine", "--minutes", "0.1", "--warm-up", "5"),
        ("serve", "--minutes", "0.1", "--warm-up", "5"),
        ("serve", "--kept", "--minutes", "0.1", "--warm-up", "5"),
    ],
    ids=["rounds", "threads", "engine", "serve", "serve, both kept"],
)
def test_nothing_is_held(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, SOAK, *arguments], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files of others do not count."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


#: In a process of its own: in this one, memory of what other tests have mapped comes and goes.
GROWS = """
import psutil, sys
sys.path.insert(0, sys.argv[1])
from held import Held, Record
record, kept, me = Record(warm_up=5), [], psutil.Process()
for number in range(20):
    kept += [bytes([number]) * 150_000, open(sys.executable, "rb")]
    record.add({"": Held.by(me)})
print(*sorted(line.partition(":")[0] for line in record.leaks()))
"""


#: Names that come and go, as many as of some thousand rounds.
NAMES = """
import sys
sys.path.insert(0, sys.argv[1])
from held import allocated, make_room_for_names
make_room_for_names()
before, most = allocated(), 0
for number in range(100_000):
    sys.intern(f"a name {number}")
    if number % 1_000 == 0:
        most = max(most, allocated() - before)
print(most > 2**17)
"""


def test_names_that_come_and_go_are_no_growth() -> None:
    command = [sys.executable, "-c", NAMES, str(SOAK.parents[1])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_what_grows_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GROWS, str(SOAK.parents[1])]
    own = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=own)
    assert done.stdout.splitlines()[-1] == "allocated files resident"


def test_too_few_rounds_tell_nothing() -> None:
    record = Record(warm_up=5)
    for _ in range(14):
        record.add({"": Held.by(psutil.Process())})
    assert record.leaks() == ["14 rounds are too few to tell: 15 at least"]


def holding(files: int) -> Held:
    return Held(0, 0, files, 1, 0, 0, 0)


def recorded(files: list[int], *, patience: float = 60, ends_after: int | None = 1) -> Record:
    """A record of processes with so many files; looked at again, there are ten, after so many times or never."""
    record = Record(warm_up=5)
    record.patience = patience
    for each in files:
        record.add({"": holding(each)})
    looks = itertools.count(1)
    record.settle(lambda: {"": holding(10 if ends_after is not None and next(looks) >= ends_after else files[-1])})
    return record


@pytest.mark.parametrize(
    "files",
    [[11] + 9 * [10] + 10 * [10, 11], [11, 10, 10, 10, 10] + 15 * [11], 15 * [10] + 15 * [11]],
    ids=["now and then", "mostly", "at the end"],
)
def test_what_is_about_to_end_is_no_leak(files: list[int]) -> None:
    assert recorded(files, ends_after=3).leaks() == []


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([10 + number // 8 for number in range(30)], "11, then 12"),
        ([10, 10, 10, 14, 10, 10, 10, 10, 10, 10] + 10 * [10] + 10 * [11], "10, then 11"),
        ([number % 3 + 10 for number in range(20)] + [number % 3 + 11 for number in range(10)], "10, then 11"),
    ],
    ids=["every few rounds", "after a peak", "below many that end"],
)
def test_what_is_kept_is_told(files: list[int], told: str) -> None:
    assert recorded(files, patience=0.3, ends_after=None).leaks() == [f"files: {told}"]


def test_each_process_is_compared_with_itself() -> None:
    record = Record(warm_up=5)
    for number in range(15):
        record.add({"server": holding(10), "a": holding(20 + number)})
    assert record.leaks() == ["a: files: 25, then 30"]


@pytest.mark.parametrize(("more", "told"), [(6, []), (7, ["threads: 1, then 8"])])
def test_what_varies_by_itself_may_be_so_much_more(more: int, told: list[str]) -> None:
    record = Record(5, varies={"threads": 6})
    for number in range(21):
        record.add({"": Held(0, 0, 3, 1 + (more if number >= 14 else 0), 0, 0, 0)})
    assert record.leaks() == told
