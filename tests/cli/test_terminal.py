"""Where somebody types and reads."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import Capture
from typist import CTRL_D, type_lines, typing

from moebind.cli.terminal import Terminal

READ = "from moebind.cli.terminal import Terminal\nterminal = Terminal()\n"


def lines(patch: pytest.MonkeyPatch, *given: str) -> list[str]:
    type_lines(patch, *given)
    terminal, found = Terminal(), []
    while (line := terminal.read()) is not None:
        found.append(line)
    return found


def test_lines_and_several_as_one(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert lines(monkeypatch, "one", "", " two ") == ["one", "", " two "]
    assert lines(monkeypatch, "one \\", "two\\", "three", "four") == ["one \ntwo\nthree", "four"]
    assert lines(monkeypatch, '"""', "one\\", "", "  two", ' """ ', "three") == ["one\\\n\n  two", "three"]
    assert lines(monkeypatch, '"""', "cut off") == ["cut off"]
    assert lines(monkeypatch, "cut off\\") == ["cut off\n"]
    assert lines(monkeypatch, "wörd 😀") == ["wörd 😀"]
    assert capsys.readouterr().out == ""  # nobody is asked


def test_what_is_apart_goes_to_standard_error(capsys: Capture) -> None:
    terminal = Terminal()
    terminal.note("nobody is there")
    terminal.write_apart("Let me ")
    terminal.write_apart("see.")
    terminal.write_apart("")
    terminal.write("It ")
    terminal.write("")
    terminal.write("rains.")
    terminal.end()
    terminal.end()
    terminal.write("One.\n")
    terminal.end()
    terminal.write_apart("Two.\n")
    terminal.end()
    said = capsys.readouterr()
    assert said.out == "It rains.\nOne.\n"
    assert said.err == "Let me see.\nTwo.\n"


def test_on_a_terminal_it_is_dim() -> None:
    code = f"{READ}terminal.write_apart('hm'); terminal.write('yes'); terminal.end(); terminal.note('told')"
    with typing(sys.executable, "-c", code) as typist:
        assert typist.wait_for("told\x1b[0m") == "\x1b[2mhm\r\n\x1b[0myes\r\n\x1b[2mtold\x1b[0m"
        typist.ends_with(0)


def test_nothing_that_a_model_writes_moves_the_cursor() -> None:
    text = "a\x1b[2J\rb\x9b1A\x07\tc\n\U0001f469\u200d\U0001f52c."
    code = f"{READ}terminal.write({text!r}); terminal.end()"
    with typing(sys.executable, "-c", code) as typist:
        assert typist.wait_for("." + "\r\n") == "a\ufffd[2J\ufffdb\ufffd1A\ufffd\tc\r\n\U0001f469\u200d\U0001f52c.\r\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode() == f"{text}\n"  # a program may read it


def test_prompts_on_a_terminal() -> None:
    code = f"{READ}print(repr(terminal.read()), repr(terminal.read('more: ')), repr(terminal.read()))"
    with typing(sys.executable, "-c", code) as typist:
        typist.wait_for("> ")
        typist.type("one\\\n")
        typist.wait_for("... ")
        typist.type("two\n")
        typist.wait_for("more: ")
        typist.type("three\n")
        typist.wait_for("> ")
        typist.type(CTRL_D)
        typist.wait_for("'one\\ntwo' 'three' None")
        typist.ends_with(0)


def test_lines_have_a_history() -> None:
    pytest.importorskip("readline")
    code = f"{READ}print(repr(terminal.read()), repr(terminal.read('more: ')), repr(terminal.read('again: ')))"
    with typing(sys.executable, "-c", code) as typist:
        typist.wait_for("> ")
        typist.type("one two\n")
        typist.wait_for("more: ")
        typist.type("\x1b[A and three\n")  # arrow up
        typist.wait_for("again: ")
        typist.type("\x1b[A\x1b[A\n")
        typist.wait_for("'one two' 'one two and three' 'one two'")
        typist.ends_with(0)
