"""What pages show of commands, to be made again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from typist import MOEBIND

DOCS = Path(__file__).resolve().parents[1] / "docs"
#: What one core computes is in the pages; spinning threads would slow down whoever else is here.
VARIABLES = {
    **os.environ,
    "PATH": f"{MOEBIND.parent}:{os.environ['PATH']}",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_WAIT_POLICY": "passive",
}


def blocks(path: Path) -> Iterator[list[tuple[str, str]]]:
    """The blocks of a page in which something is typed: each command, on one line or several, and what it wrote."""
    text = path.read_text(encoding="utf-8")
    for indent, kind, block in re.findall(r"^( *)```(console|sh)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        begin = r"^(?:\w*\$ )" if kind == "console" else r"(?<!\\\n)^(?=.)"
        parts = re.split(begin, re.sub(f"^{indent}", "", block, flags=re.MULTILINE), flags=re.MULTILINE)[1:]
        yield [(command, output) for command, output in (re.split(r"(?<!\\)\n", part, maxsplit=1) for part in parts)]


def transcripts(page: str) -> Iterator[tuple[str, str]]:
    """Each command of a page in docs/, and what it wrote there."""
    for block in blocks(DOCS / page):
        yield from block


def like(text: str) -> str:
    """A text without its numbers, which are another machine's, how they are aligned, and what its host has them in."""
    plain = re.sub(r"\x1b\[\d+m|\r|^  CPU.*\n| to CPU.*", "", text, flags=re.MULTILINE)
    return re.sub(r" +", " ", re.sub(r"\d+(\.\d+)?", "N", plain))


def assert_shows(shown: str, said: str) -> None:
    """What a page shows was said, in one piece. Three dots stand for lines that are left out, or for a line's end."""
    pattern = "".join(
        r"(?:.*\n)*"
        if line in {"...", "[...]"}
        else re.escape(line.removesuffix("...")) + ".*" * line.endswith("...") + r"\n"
        for line in like(shown).splitlines()
    )
    assert re.search(f"^{pattern}", like(said), re.MULTILINE), f"{shown}\nis not in\n{said}"
