"""Texts of commands that take several: arguments, or lines of a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from moebind.cli.text_options import read_text

__all__ = ["Lines", "Truncate", "texts_of"]

Lines: TypeAlias = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="A file with a text in each line; -: standard input."),
]
Truncate: TypeAlias = Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")]


def texts_of(texts: Sequence[str] | None, file: Path | None) -> list[str]:
    """The texts that were given; without any, those of standard input. Empty lines are none.

    Raises
    ------
    ValueError
        If there are none, or both arguments and a file.
    """
    if texts and file is not None:
        raise ValueError(f"TEXT is {texts[0]!r}, and --file is given too; leave one of them out")
    if texts:
        return list(texts)
    if file is None and sys.stdin.isatty():
        raise ValueError("there is no text: give some (TEXT), a --file with one in each line, or standard input")
    found = [line for line in read_text(file or Path("-")).splitlines() if line.strip()]
    if not found:
        where = "standard input" if file is None or str(file) == "-" else file
        raise ValueError(f"{where} has no text; it takes one in each line")
    return found
