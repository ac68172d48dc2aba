"""Where somebody types and reads: lines with their history, several lines as one, and words that are set apart."""

from __future__ import annotations

import sys
from contextlib import suppress

from moebind.cli.output import stream

__all__ = ["Terminal"]

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_FENCE = '"""'


class Terminal:
    """Standard input, output and error; ``interactive`` is whether somebody types."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._shown_here = sys.stdout.isatty()
        #: Whether what is being written is set apart, and whether its line goes on.
        self._apart = self._goes_on = False
        if self.interactive and self._shown_here:
            with suppress(ImportError):  # without it, lines have no history
                import readline  # noqa: F401

    def read(self, prompt: str = "> ") -> str | None:
        """Read a line; None at the end of the input.

        A line that ends with a backslash goes on in the next, and what is between two lines of three quotation marks
        is one text.
        """
        line = self._line(prompt)
        if line is not None and line.strip() == _FENCE:
            lines = []
            while (more := self._line("... ")) is not None and more.strip() != _FENCE:
                lines.append(more)
            return "\n".join(lines)
        while line is not None and line.endswith("\\"):
            line = f"{line[:-1]}\n{self._line('... ') or ''}"
        return line

    def _line(self, prompt: str) -> str | None:
        if self.interactive and self._shown_here:
            try:
                return input(prompt)
            except EOFError:
                print()
                return None
        if self.interactive:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None

    def note(self, message: str) -> None:
        """Tell whoever types something that belongs to no text."""
        if self.interactive:
            print(f"{_DIM}{message}{_PLAIN}" if sys.stderr.isatty() else message, file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        """Write a part of a text."""
        if text:
            self._set_apart(False)
            stream(text)
            self._goes_on = not text.endswith("\n")

    def write_apart(self, text: str) -> None:
        """Write what does not belong to the text: dim on a terminal, else to standard error."""
        if text:
            self._set_apart(True)
            stream(text, to_error=not self._shown_here)
            self._goes_on = not text.endswith("\n")

    def end(self) -> None:
        """End what is being written: what comes next begins plainly, in a line of its own."""
        self._set_apart(False)
        self._end_line()

    def _set_apart(self, apart: bool) -> None:
        if apart == self._apart:
            return
        self._end_line()
        self._apart = apart
        if self._shown_here:
            print(_DIM if apart else _PLAIN, end="", flush=True)

    def _end_line(self) -> None:
        if self._goes_on:
            print(file=sys.stderr if self._apart and not self._shown_here else sys.stdout, flush=True)
            self._goes_on = False
