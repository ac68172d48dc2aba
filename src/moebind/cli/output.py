"""The output of commands."""

from __future__ import annotations

import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["note", "passing", "say", "show", "show_json", "show_line", "stream", "version"]


def say(message: str) -> None:
    """Write a message to standard error, in one line, whatever it holds."""
    encoding = sys.stderr.encoding or "utf-8"
    parts = [" ".join(part.split()) for part in message.splitlines() if part.strip()]
    # A line that ends as no sentence does, such as the one before a reason of llama.cpp's, is set apart.
    ended = [part if part[-1] in ".,:;" else f"{part};" for part in parts[:-1]]
    line = f"moebind: {' '.join([*ended, *parts[-1:]])}"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


def note(text: str) -> None:
    """Write what goes beside the results to standard error."""
    encoding = sys.stderr.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=sys.stderr, flush=True)


def show(text: object) -> None:
    """Write text to standard output; characters that its encoding lacks are replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    print(str(text).encode(encoding, "replace").decode(encoding))


def show_json(found: Mapping[str, object], *, indent: int | None = 2) -> None:
    """Write a mapping to standard output, as JSON; in one line where ``indent`` is None."""
    import json  # most commands tell people

    print(json.dumps(found, indent=indent))


def show_line(found: Mapping[str, object]) -> None:
    """Write a mapping to standard output, as JSON in one line, at once."""
    import json

    print(json.dumps(found), flush=True)


#: Control characters but for tabs and ends of lines, and what stands for them.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


def stream(text: str, *, to_error: bool = False) -> None:
    """Write a part of a text to standard output, or to standard error, at once.

    Characters that its encoding lacks are replaced; on a terminal, so is what would move the cursor, or worse: a model
    may write anything.
    """
    file = sys.stderr if to_error else sys.stdout
    encoding = file.encoding or "utf-8"
    if file.isatty():
        text = text.translate(_CONTROLS)
    print(text.encode(encoding, "replace").decode(encoding), end="", file=file, flush=True)


@contextmanager
def passing() -> Iterator[Callable[[str], None]]:
    """What is done at the moment, in one line on standard error that the next replaces; only on a terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    width = shutil.get_terminal_size().columns - 1
    encoding = sys.stderr.encoding or "utf-8"

    def tell(text: str) -> None:
        line = " ".join(text.split())[:width].encode(encoding, "replace").decode(encoding)
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def version(wanted: bool) -> None:
    """Answer ``--version``."""
    if wanted:
        import typer

        from moebind_launcher import versions

        show(versions())
        raise typer.Exit
