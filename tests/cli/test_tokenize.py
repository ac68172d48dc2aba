"""moebind tokenize."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Capture, run

from moebind import Model

MakeTiny = Callable[..., Path]
TEXT = "Hello, wörld 😀"


def test_pieces_ids_and_counts(demo_path: Path, demo: Model, capsys: Capture) -> None:
    tokens = demo.str_to_token(TEXT).tolist()
    assert run("tokenize", demo_path, TEXT) == 0
    told = [line.split(" -> ") for line in capsys.readouterr().out.splitlines()]
    assert [int(number) for number, _ in told] == tokens
    assert told[0][1] == "'Hello'"
    assert run("tokenize", demo_path, TEXT, "--ids") == 0
    assert json.loads(capsys.readouterr().out) == tokens
    assert run("tokenize", demo_path, TEXT, "--count") == 0
    assert capsys.readouterr().out == f"{len(tokens)}\n"


def test_json_has_bytes_where_they_are_no_text(demo_path: Path, demo: Model, capsys: Capture) -> None:
    assert run("tokenize", demo_path, TEXT, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == len(found["tokens"])
    pieces = [each["piece"] for each in found["tokens"]]
    assert any(isinstance(piece, list) for piece in pieces)  # of the smiley
    whole = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces)
    assert whole.decode() == TEXT


def test_control_tokens_and_what_is_added(demo_path: Path, tiny_path: MakeTiny, demo: Model, capsys: Capture) -> None:
    for options, special in (([], True), (["--no-parse-special"], False)):
        assert run("tokenize", demo_path, "<|im_end|>", "--ids", *options) == 0
        tokens = demo.str_to_token("<|im_end|>", parse_special=special).tolist()
        assert json.loads(capsys.readouterr().out) == tokens
        assert (len(tokens) == 1) is special
    counts = []
    for options in ([], ["--no-bos"]):
        assert run("tokenize", tiny_path(), "it is", "--count", *options) == 0
        counts.append(int(capsys.readouterr().out))
    assert counts[0] == counts[1] + 1


def test_where_the_text_comes_from(demo_path: Path, tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    file = tmp_path / "text.txt"
    file.write_text("Hello\n\n", encoding="utf-8")  # of which the last is the editor's
    assert run("tokenize", demo_path, "Hello\n", "--ids") == 0
    expected = capsys.readouterr().out
    for arguments in (
        [demo_path, "-p", "Hello\n"],
        [demo_path, "-f", file],
        ["-m", demo_path],
        ["-m", demo_path, "Hello\n"],
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n\n")))
        assert run("tokenize", *arguments, "--ids") == 0
        assert capsys.readouterr().out == expected
    assert run("tokenize", demo_path, "", "--count") == 0
    assert capsys.readouterr().out == "0\n"


def test_what_has_no_text_is_an_error_of_every_command(
    tiny_path: MakeTiny, tmp_path: Path, capsys: Capture, monkeypatch: Any
) -> None:
    """A count of nothing is an answer only to who asked for it, as an argument."""
    file = tmp_path / "empty.txt"
    file.write_text("\n", encoding="utf-8")
    for command in ("tokenize", "generate", "embed"):
        how = "; it takes one in each line" if command == "embed" else ": give it as an argument, --prompt or --file"
        for arguments, told in (
            ([], f"standard input has no text{how}"),
            (["-f", "-"], "standard input has no text"),
            (["-f", file], "empty.txt has no text"),
        ):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
            assert run(command, tiny_path(), *arguments) == 2
            said = capsys.readouterr()
            assert said.out == ""
            assert told in said.err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["MODEL", "a", "--ids", "--json"], 2, "are forms of the output"),
        (["MODEL", "a", "--count", "--ids"], 2, "are forms of the output"),
        (["MODEL", "a", "-p", "b"], 2, "the text is given as an argument and as --prompt"),
        (["MODEL", "-f", "none.txt"], 1, "none.txt"),
        (["MODEL", "a", "b"], 2, "'b' is more than there is a place for: moebind tokenize takes MODEL TEXT"),
        (["none.gguf", "a"], 1, "none.gguf does not exist"),
        (["MODEL", "\ud800"], 2, "surrogate"),
    ],
    ids=range(7),
)
def test_misuse(tiny_path: MakeTiny, capsys: Capture, arguments: list[str], status: int, message: str) -> None:
    assert run("tokenize", *[tiny_path() if each == "MODEL" else each for each in arguments]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
