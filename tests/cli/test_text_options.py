"""Options of commands that write text."""

from __future__ import annotations

import dataclasses
import inspect
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from moebind import Context, Timings, Usage
from moebind.cli import text_options as t
from moebind.cli.given import Given, takes
from moebind.sampling.settings import Settings

READ: list[Given] = []


@takes(*t.SAMPLING)
def command(given: Given) -> None:
    READ.append(given)


app = typer.Typer(add_completion=False)
app.command()(command)


def read(*arguments: object) -> dict[str, Any]:
    READ.clear()
    app([str(each) for each in arguments], standalone_mode=False)
    return t.sampling(READ.pop())


def test_they_are_the_arguments_of_generate() -> None:
    names = {option.name for option in t.SAMPLING}
    assert names == {field.name for field in dataclasses.fields(Settings)}
    for call in (Context.generate, Context.chat):
        assert names <= set(inspect.signature(call).parameters)


def test_what_is_not_given_is_left_out() -> None:
    assert read() == {}
    assert read("--temp", 0, "--seed", 0) == {"temperature": 0.0, "seed": 0}
    everything = ["--temperature", 1, "--top-k", -1, "--top-p", 0.5, "--min-p", 0.1, "--repeat-penalty", 1.1]
    everything += ["--presence-penalty", 0.2, "--frequency-penalty", -0.3, "-s", -1]
    assert Settings(**read(*everything)) == Settings(1.0, -1, 0.5, 0.1, 1.1, 0.2, -0.3, -1)


def test_one_text(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes("wörd\n".encode())
    assert t.one_text(None, None, ("--a", "--a-file")) is None
    assert t.one_text("", None, ("--a", "--a-file")) == ""
    assert t.one_text(None, file, ("--a", "--a-file")) == "wörd\n"
    assert t.one_text(None, file, ("--a", "--a-file"), t.read_prompt) == "wörd"
    with pytest.raises(ValueError, match="--a and --a-file are both given"):
        t.one_text("", file, ("--a", "--a-file"))
    file.write_bytes(b"w\xf6rd")
    with pytest.raises(ValueError, match="text is not text in UTF-8: invalid .* at byte 1"):
        t.one_text(None, file, ("--a", "--a-file"))


def test_one_prompt(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "text"
    file.write_text("three", encoding="utf-8")
    assert t.one_prompt("one", None, None) == "one"
    assert t.one_prompt(None, "", None) == ""
    assert t.one_prompt(None, None, file) == "three"
    for given in (None, Path("-")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"four\n")))
        assert t.one_prompt(None, None, given) == "four"
    for written, prompt in (("", ""), ("\n", ""), ("a\n\n", "a\n"), ("\na ", "\na ")):
        file.write_text(written, encoding="utf-8")
        assert t.one_prompt(None, None, file) == prompt
    assert t.one_prompt("a\n", None, None) == t.one_prompt(None, "a\n", None) == "a\n"  # what is written is meant
    with pytest.raises(ValueError, match="the text is given as an argument and as --prompt and as --file"):
        t.one_prompt("", "", file)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(ValueError, match="there is no text"):
        t.one_prompt(None, None, None)


def test_what_a_text_took() -> None:
    found = t.ended(Usage(5, 2, 4), "length", Timings(0.0, 1.0, 30.0, 60.0, 3, 3))
    assert found == {
        "stop_reason": "length",
        "usage": {"prompt_tokens": 5, "cached_tokens": 2, "generated_tokens": 4, "total_tokens": 9},
        "timings": {
            "prompt_n": 3,
            "prompt_ms": 30.0,
            "prompt_per_second": 100.0,
            "predicted_n": 3,
            "predicted_ms": 60.0,
            "predicted_per_second": 50.0,
        },
    }
