"""Whether drafting pays: for ``auto``, which measures the first tokens of a text, and goes on measuring."""

from __future__ import annotations

from collections import deque

__all__ = ["Judge"]

#: So many tokens are computed without a draft first. The very first is not counted: its graph is made anew.
PLAIN = 5
#: So many drafts are judged together.
DRAFTS = 6


class Judge:
    """Compares the speed with drafts to that without, in one text.

    Attributes
    ----------
    reason : str or None
        Why drafting lost; None while it goes on.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._plain: deque[tuple[int, int]] = deque(maxlen=4 * PLAIN)
        self._drafted: deque[tuple[int, int]] = deque(maxlen=DRAFTS)
        self._n_plain = 0

    @property
    def measures_plain(self) -> bool:
        """Whether the next token is to be computed without a draft, to know what that takes."""
        return self._n_plain < PLAIN

    def saw(self, n_tokens: int, microseconds: int, drafted: bool) -> None:
        """So many tokens were computed in that time."""
        if not drafted:
            self._n_plain += 1
            if self._n_plain > 1:
                self._plain.append((n_tokens, microseconds))
            return
        self._drafted.append((n_tokens, microseconds))
        if len(self._drafted) < DRAFTS or not self._plain:
            return
        speed, plain = _speed(self._drafted), _speed(self._plain)
        if speed < plain:
            self.reason = f"{speed:.1f} tokens/s with drafts, {plain:.1f} without"


def _speed(seen: deque[tuple[int, int]]) -> float:
    """Tokens a second."""
    return 1e6 * sum(n for n, _ in seen) / max(sum(us for _, us in seen), 1)
