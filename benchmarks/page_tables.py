"""Tables that benchmarks write into pages of docs, between two comments."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
#: Where each of them ends.
END = "<!-- End of what it wrote. -->"


def begin(program: str) -> str:
    """The comment behind which a program of ``benchmarks/`` writes."""
    return f"<!-- Written by benchmarks/{program}. -->"


def with_lines(page: str, program: str, lines: Iterable[str]) -> str:
    """The page with these lines in the program's place."""
    first = begin(program)
    between = re.compile(f"{re.escape(first)}.*?{re.escape(END)}", re.DOTALL)
    if not between.search(page):
        raise SystemExit(f"the page has no place for the table: it needs the lines {first} and {END}")
    written = "\n".join([first, "", *lines, "", END])
    return between.sub(lambda _: written, page)
