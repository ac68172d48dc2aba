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


def transcripts(page: str) -> Iterator[tuple[str, str]]:
    """Each command of a page, which may go on where a line ends with a backslash, and what it wrote there."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, output = re.split(r"(?<!\\)\n", part, maxsplit=1)
            yield command, output


def like(text: str) -> str:
    """A text without its numbers, which are another machine's, how they are aligned, and what its host has them in."""
    plain = re.sub(r"\x1b\[\d+m|\r|^  CPU.*\n| to CPU.*", "", text, flags=re.MULTILINE)
    return re.sub(r" +", " ", re.sub(r"\d+(\.\d+)?", "N", plain))


def assert_shows(shown: str, said: str) -> None:
    """What a page shows was said, in one piece but for lines of three dots, which stand for those that are left out."""
    parts = [re.escape(part) for part in re.split(r"^\.\.\.\n", like(shown), flags=re.MULTILINE)]
    assert re.search("^" + "(?:.*\n)*".join(parts), like(said), re.MULTILINE), f"{shown}\nis not in\n{said}"
