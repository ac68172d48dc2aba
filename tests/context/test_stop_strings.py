"""Stop strings: what is held back of a text, and where it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moebind.context.stop_strings import StopStrings

PIECES = st.lists(st.text("ab", max_size=5), max_size=10)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


@given(st.lists(st.text("ab", max_size=3), max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stop_strings_in_pieces(pieces: list[str], stops: list[str]) -> None:
    held, shown, stopped, seen = StopStrings(stops), "", False, ""
    for piece in pieces:
        seen += piece
        text, stopped = held.add(piece)
        shown += text
        assert not any(stop in shown for stop in stops)
        if stopped:
            break
    # It ends with the first stop string that is complete.
    places = [seen.find(stop) for stop in stops if stop in seen]
    assert stopped == bool(places)
    assert shown + ("" if stopped else held.flush()) == (seen[: min(places)] if places else "".join(pieces))


class Naive:
    """What is held back, told by its definition."""

    def __init__(self, stops: list[str]) -> None:
        self.stops, self.held = stops, ""

    def add(self, text: str) -> tuple[str, str | None]:
        text = self.held + text
        found = [(text.find(each), at) for at, each in enumerate(self.stops) if each in text]
        if found:
            begin, at = min(found)
            self.held = ""
            return text[:begin], self.stops[at]
        begins = {each[:length] for each in self.stops for length in range(1, len(each))}
        keep = max((length for length in range(1, len(text) + 1) if text[-length:] in begins), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], None


@given(PIECES, STOPS)
def test_as_much_is_held_back_as_may_begin_one(pieces: list[str], stops: list[str]) -> None:
    held, naive = StopStrings(stops), Naive(stops)
    for piece in pieces:
        text, came = naive.add(piece)
        assert held.add(piece) == (text, came is not None)
        assert held.came == came
        if came is not None:
            break
    assert held.flush() == naive.held
    assert held.flush() == ""


def test_a_long_string_costs_no_more_for_each_character() -> None:
    # What looks at all of it again with each character would look at 10 billion.
    count = 100_000
    held = StopStrings(["a" * count + "b", "a" * count + "c"])
    shown = [held.add("a") for _ in range(2 * count)]
    assert shown == [("", False)] * count + [("a", False)] * count
    assert held.add("xb") == ("a" * count + "xb", False)
    for _ in range(count):
        held.add("a")
    assert held.add("c") == ("", True)
    assert held.came == "a" * count + "c"
