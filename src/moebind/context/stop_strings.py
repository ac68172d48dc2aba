"""Stop strings: text that may be the beginning of one is held back."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Holds text back as long as it may be the beginning of a stop string.

    Each string is searched for as Knuth, Morris and Pratt do: what a character costs does not grow with the strings.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._borders = [_borders(each) for each in stop]
        #: How many of its characters the text ends with, of each string.
        self._matched = [0] * len(stop)
        #: The string of which most is held back, and how much. So nothing else has to be kept of the text.
        self._held, self._n_held = "", 0
        #: The one that came.
        self.came: str | None = None

    def add(self, text: str) -> tuple[str, bool]:
        """Take new text; give what can be shown, and whether a stop string came."""
        if not self._stop:
            return text, False
        ends = [self._follow(at, text) for at in range(len(self._stop))]
        found = [(end - len(stop), stop) for end, stop in zip(ends, self._stop, strict=True) if end is not None]
        if found:
            begin, self.came = min(found, key=lambda one: one[0])
            shown = self._beginning(text, self._n_held + begin)
            self._hold([0] * len(self._stop))
            return shown, True
        shown = self._beginning(text, self._n_held + len(text) - max(self._matched))
        self._hold(self._matched)
        return shown, False

    def flush(self) -> str:
        """Give the text that was held back, when nothing follows."""
        text = self._beginning("", self._n_held)
        self._hold([0] * len(self._stop))
        return text

    def _beginning(self, text: str, length: int) -> str:
        """So much of what is held back, and of the text after it."""
        n_held = min(length, self._n_held)
        return self._held[:n_held] + text[: length - n_held]

    def _hold(self, matched: list[int]) -> None:
        self._matched = matched
        self._n_held = max(matched, default=0)
        self._held = self._stop[matched.index(self._n_held)] if matched else ""

    def _follow(self, at: int, text: str) -> int | None:
        """Match one of the strings with text that follows; the place behind its first end in it, if there is one."""
        stop, borders, matched = self._stop[at], self._borders[at], self._matched[at]
        if not matched and stop[0] not in text:
            return None
        for place, character in enumerate(text):
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                return place + 1
        self._matched[at] = matched
        return None


def _borders(text: str) -> list[int]:
    """For each beginning of a text, the length of the longest shorter beginning that it ends with."""
    found = [0] * len(text)
    length = 0
    for at in range(1, len(text)):
        while length and text[at] != text[length]:
            length = found[length - 1]
        if text[at] == text[length]:
            length += 1
        found[at] = length
    return found
