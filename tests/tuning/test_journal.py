"""The journal: answers that are there are not asked for again, whatever was being written when it was stopped."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import Machine, Point, random_machine

from moebind.errors import MoebindError
from moebind.tuning.journal import Journal
from moebind.tuning.search import Choice, Found, Measured, Step, Within, search

ABOUT = {"model": "m", "machine": {"cpu": 2}}


class Stopped(Exception):
    """Somebody ended the search."""


class Kept:
    """A machine that is only described, with a journal before it, which is stopped after so many rounds."""

    def __init__(self, machine: Machine, journal: Journal, rounds: int = 10**9) -> None:
        self.machine = machine
        self.journal = journal
        self.left = rounds

    def choices(self, dimension: str, current: Point, within: Within) -> list[Choice[Point]] | str:
        return self.machine.choices(dimension, current, within)

    def round(self, purpose: str, subjects: list[tuple[str, Point]], within: Within) -> list[Measured]:
        def answer() -> list[list[object]]:
            if not self.left:
                raise Stopped
            self.left -= 1
            return [[each.cost, each.failure, each.seconds] for each in self.machine.round(purpose, subjects, within)]

        return [Measured(*each) for each in self.journal.ask(self._question(purpose, subjects), answer)]

    def answered(self, purpose: str, subjects: list[tuple[str, Point]]) -> bool:
        return self.journal.answers(self._question(purpose, subjects))

    def _question(self, purpose: str, subjects: list[tuple[str, Point]]) -> dict[str, object]:
        return {"purpose": purpose, "subjects": [[name, dict(point)] for name, point in subjects]}

    def check(self, name: str, subject: Point, within: Within) -> str | None:
        return self.machine.check(name, subject, within)

    def time_left(self) -> float:
        return float("inf")

    def told(self, step: Step) -> None:
        pass

    def run(self) -> Found[Point]:
        try:
            return search(self.machine.start, list(self.machine.effects), self)
        finally:
            self.journal.close()


def test_answers_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, ABOUT)
    assert journal.ask({"what": 1}, lambda: {"a": (1, 2)}) == {"a": [1, 2]}
    journal.close()
    again = Journal(path, ABOUT, resume=True)
    assert again.replays
    assert again.answers({"what": 1})
    assert not again.answers({"what": 2})
    assert again.ask({"what": 1}, lambda: pytest.fail("it is asked again")) == {"a": [1, 2]}
    assert not again.replays
    assert not again.answers({"what": 1})
    assert again.ask({"what": 2}, lambda: 7) == 7
    again.close()


def test_another_question_makes_the_rest_new(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, ABOUT)
    for number in range(3):
        journal.ask({"what": number}, lambda number=number: number)
    journal.close()
    again = Journal(path, ABOUT, resume=True)
    assert again.ask({"what": 0}, lambda: -1) == 0
    assert again.ask({"what": 9}, lambda: -1) == -1
    assert again.ask({"what": 2}, lambda: -2) == -2
    again.close()
    third = Journal(path, ABOUT, resume=True)
    assert [third.ask({"what": number}, lambda: None) for number in (0, 9, 2)] == [0, -1, -2]
    third.close()


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for value in (1, 2):
        journal = Journal(path, ABOUT)
        assert journal.ask({}, lambda value=value: value) == value
        journal.close()


@given(st.data())
def test_it_can_be_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("cut") / "journal"
    journal = Journal(path, ABOUT)
    for number in range(4):
        journal.ask({"what": number}, lambda number=number: number)
    journal.close()
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    at = data.draw(st.integers(head, len(whole)))
    path.write_bytes(whole[:at])
    again = Journal(path, ABOUT, resume=True)
    known = whole[:at].count(b"\n") - 1
    for number in range(4):
        assert again.ask({"what": number}, lambda: "new") == (number if number < known else "new")
    again.close()
    assert path.read_bytes().count(b"\n") == 5


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]\n", b'{"form": 99, "about": {}}\n', b"GGUF\x03\n", b'{"form": 1}\n']
)
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no journal of a search"):
        Journal(path, ABOUT, resume=True)
    assert path.read_bytes() == content


def test_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, ABOUT).close()
    with pytest.raises(ValueError, match=r"of another search: machine differs \(machine was \{'cpu': 2\}"):
        Journal(path, {**ABOUT, "machine": {"cpu": 3}}, resume=True)


def test_there_has_to_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        Journal(tmp_path / "none", ABOUT, resume=True)


@pytest.mark.parametrize("rounds", [0, 1, 5, 17])
def test_a_search_that_is_stopped_goes_on(tmp_path: Path, rounds: int) -> None:
    path = tmp_path / "journal"
    with pytest.raises(Stopped):
        Kept(random_machine(5), Journal(path, ABOUT), rounds).run()
    kept = path.read_bytes()
    machine = random_machine(5)
    resumed = Kept(machine, Journal(path, ABOUT, resume=True))
    found = resumed.run()
    assert path.read_bytes().startswith(kept)
    assert kept.count(b"\n") == 1 + rounds
    # Once more, from the journal alone: the same, and nothing is measured.
    silent = random_machine(5)
    assert Kept(silent, Journal(path, ABOUT, resume=True)).run() == found
    assert not silent.measured


def test_what_is_killed_while_it_writes_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    code = f"""
import os, signal
from moebind.tuning.journal import Journal
journal = Journal({str(path)!r}, {ABOUT!r})
journal.ask({{"what": 0}}, lambda: 0)
journal._file.write(b'{{"question": {{"what": 1}}, "ans')
journal._file.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False)
    assert done.returncode == -9
    journal = Journal(path, ABOUT, resume=True)
    assert journal.ask({"what": 0}, lambda: None) == 0
    assert journal.ask({"what": 1}, lambda: 1) == 1
    journal.close()


def test_two_searches_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path, ABOUT)
    first.ask({"a": 1}, lambda: 2)
    written = path.read_bytes()
    for resume in (False, True):
        with pytest.raises(MoebindError, match=r"^journal is '.*', into which another search writes at this moment"):
            Journal(path, ABOUT, resume=resume)
    assert path.read_bytes() == written
    first.ask({"b": 1}, lambda: 3)
    first.close()
    again = Journal(path, ABOUT, resume=True)
    assert again.ask({"a": 1}, lambda: 0) == 2
    assert again.ask({"b": 1}, lambda: 0) == 3
    again.close()
    # What is no journal is told, and left alone for who looks next.
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="no journal"):
        Journal(path, ABOUT, resume=True)
    assert path.read_bytes() == b"something else"
    Journal(path, ABOUT).close()


def test_the_end_of_a_process_gives_the_journal_up(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    code = (
        "import sys; from moebind.tuning.journal import Journal\n"
        "held = Journal(sys.argv[1], {}); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(MoebindError, match="another search"):
        Journal(path, ABOUT)
    process.kill()
    process.wait()
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()
    Journal(path, ABOUT).close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    journal = Journal(tmp_path / "journal", ABOUT)
    assert journal.ask({"a": 1}, lambda: 2) == 2
    journal.close()
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        Journal(tmp_path / "journal", ABOUT, resume=True)
