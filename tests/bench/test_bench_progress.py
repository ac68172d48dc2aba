"""How a benchmark tells how far it is."""

from __future__ import annotations

import io
import sys

import pytest
from reports import GIB, row

from moebind import MoebindError
from moebind.bench import OffloadRow
from moebind.bench.progress import Progress

Capture = pytest.CaptureFixture[str]
DONE = row("all on the device", GIB, 0.0)
FAILED = OffloadRow("b\u00fc", "it\n  broke", "2026-01-01T00:00:00+00:00", "k")


def test_a_callback_is_told_fractions(capsys: Capture) -> None:
    told: list[float] = []
    with Progress(told.append, 4) as progress:  # type: ignore[arg-type]
        progress.begin("first", 1, 2, 0)
        progress.measures()
        progress.step()
        progress.aside(0.5)
        progress.finished(DONE, known=False)
        progress.begin("second", 2, 2, 2)
        progress.step()
        progress.step()
        progress.step()  # never more than all
    assert told == [0.0, 0.0, 0.25, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert capsys.readouterr().err == ""


def test_a_callback_can_stop_it() -> None:
    with Progress(lambda fraction: fraction < 0.5, 2) as progress:
        progress.begin("first", 1, 1, 0)
        with pytest.raises(MoebindError, match="the progress callback stopped the benchmark"):
            progress.step()
        with pytest.raises(MoebindError):
            progress.aside(0.0)


PARTS = ["loading", "run 1 of 2", "run 2 of 2", "comparing 1 of 1"]


def test_lines_where_there_is_no_terminal(capsys: Capture) -> None:
    with Progress(True, 8, lambda at: PARTS[min(at, 3)]) as progress:
        progress.begin("all on the device", 1, 2, 0)
        progress.finished(DONE, known=True)  # nothing is done with it
        progress.begin(FAILED.name, 2, 2, 4)
        assert len(capsys.readouterr().err.splitlines()) == 1
        progress.measures()
        assert capsys.readouterr().err == "2 of 2, b\u00fc: loading\n"
        for _ in PARTS:
            progress.step()
        assert capsys.readouterr().err == "2 of 2, b\u00fc: run 1 of 2\n2 of 2, b\u00fc: comparing 1 of 1\n"
        progress.finished(FAILED, known=False)
        assert capsys.readouterr().err == "2 of 2, b\u00fc: failed: it broke\n"


def test_the_line_of_what_is_finished(capsys: Capture) -> None:
    with Progress(True, 4) as progress:
        progress.begin(DONE.name, 1, 2, 0)
        progress.measures()  # there are no words for the parts
        progress.finished(DONE, known=True)
    assert DONE.prompt is not None
    line = capsys.readouterr().err.rstrip("\n")
    assert line.startswith(f"1 of 2, all on the device: prompt {DONE.prompt.mean:.1f}, decode ")
    assert line.endswith(" tokens/s, measured before")


def test_characters_that_a_terminal_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", written)
    with Progress(True, 1) as progress:
        progress.begin(FAILED.name, 1, 1, 0)
        progress.finished(FAILED, known=False)
    assert written.buffer.getvalue() == b"1 of 1, b\\xfc: failed: it broke\n"  # type: ignore[attr-defined]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress(True, 2, lambda at: PARTS[at]) as progress:
        progress.begin("first", 1, 1, 0)
        progress.measures()
        progress.step()
        progress.finished(DONE, known=False)
        progress.at(2)
    assert "1 of 1, first: run 1 of 2: 100%|" in terminal.getvalue()
    assert "tokens/s" not in terminal.getvalue()


def test_lines_on_a_terminal_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress(True, 1) as progress:
        progress.begin(DONE.name, 1, 1, 0)
        progress.step()
        progress.finished(DONE, known=False)
    assert terminal.getvalue().startswith("1 of 1, all on the device")


def test_silence(capsys: Capture) -> None:
    with Progress(False, 1, lambda at: "loading") as progress:
        progress.begin(DONE.name, 1, 1, 0)
        progress.measures()
        progress.step()
        progress.finished(DONE, known=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("given", ["yes", None, 1])
def test_what_is_no_progress(given: object) -> None:
    with pytest.raises(TypeError, match="progress"):
        Progress(given, 1)  # type: ignore[arg-type]
