"""The search: one dimension after the other, each time the choice that measures best, if it is better beyond the noise.

It knows nothing of models: what is searched are objects that somebody else measures (:class:`Measures`), so that it can
be tried on a machine that is only described.

For each dimension, all its choices are measured side by side with what is the best so far, in rounds; on the way the
slower half is left out (screening). The one that is left is then measured in new rounds, against the best so far
alone, and is kept if the test of :mod:`moebind.tuning.decision` says so (confirmation): what made it look good while
it was chosen does not count. In the end what was kept is measured against what the search began with, and if it is no
better beyond the noise, nothing is kept. All decisions share one chance to err, half of which the last one has.

A search ends in its time: what a measurement takes is known from those that were made, nothing is begun for which there
is no time beside the last comparison, and what takes longer than expected is ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import exp, inf, log
from typing import Generic, Protocol, TypeAlias, TypeVar

from moebind.tuning.decision import ERROR, can_still_win, interval, is_better, rounds_needed, typical

__all__ = ["NO_TIME", "Choice", "Found", "Measured", "Measures", "NoTimeError", "Step", "Within", "search"]

S = TypeVar("S")
#: The seconds that something may take, asked for when it begins: what a journal answers takes none.
Within: TypeAlias = Callable[[], float]
#: What a choice has to gain while it is screened to be worth more rounds, and to be worth the words: 1 %.
GAIN_MIN = 0.01
#: Rounds of screening; after the second, the slower half is left out.
SCREENING = 3
#: What takes twice as long is left out after any round.
FAR = log(2)
#: Rounds after which a choice that is no better is given up.
HOPELESS = 5
#: How often all dimensions are gone through: what is kept of one may change what is best of another.
PASSES = 2
#: When a comparison is looked at, in multiples of the rounds that it takes at least.
LOOKS = (1, 3)
#: The comparison of results computes texts with both: what so many measurements take, with room to spare.
CHECKING = 8
#: The share of the time that is kept for the last comparison, if that is not more than all its rounds, nor too few.
KEPT_BACK = 1 / 3
#: How much longer than others a measurement may take without being ended, where time is short.
UNEVEN = 2
NO_TIME = "there was no time for it"
#: Why nothing was tried, where not even the beginning could be measured.
NO_MEASUREMENT = "there was no time for a single measurement"


class NoTimeError(Exception):
    """A measurement was ended since the time for it was over; it counts as one that was not made."""


@dataclass(frozen=True)
class Choice(Generic[S]):
    """Something to try: a name for people, and what is measured. ``refused``: why it must not be tried."""

    name: str
    subject: S
    refused: str | None = None


@dataclass(frozen=True)
class Measured:
    """One measurement: what it cost, as the logarithm of seconds; or why there is none."""

    cost: float | None
    failure: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Step:
    """What came of a dimension.

    Attributes
    ----------
    dimension : str
        Its name.
    name : str
        The choice that was best while choices were screened; empty if there was none to try.
    kept : bool
        Whether it was kept.
    why : str
        Why it was not, or why there was nothing to try.
    differences : tuple[float, ...]
        How much less it cost than the best so far, in each round of the confirmation: differences of logarithms.
    gain, low, high : float or None
        How many times as fast it is, and the interval of 95 % around that.
    tried, refused : int
        Choices that were measured, and that were not because they must not be.
    """

    dimension: str
    name: str = ""
    kept: bool = False
    why: str = ""
    differences: tuple[float, ...] = ()
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    tried: int = 0
    refused: int = 0

    @property
    def title(self) -> str:
        """The dimension, and the choice if there was one."""
        own = not self.name or self.name.startswith(self.dimension)
        return self.name or self.dimension if own else f"{self.dimension}: {self.name}"

    @property
    def out_of_time(self) -> bool:
        """Whether there is nothing to tell of it but that there was no time."""
        return not self.name and self.why in {NO_TIME, NO_MEASUREMENT}


@dataclass(frozen=True)
class Found(Generic[S]):
    """The result: what is best, the steps to it, and how it compares with the beginning.

    ``total`` is the step from the beginning to the best, whose rounds are new ones; None if nothing was kept.
    ``complete`` is whether there was time for all of it. ``needs``: the seconds that one choice takes until it is kept,
    if there was not even time for that; None: there was, or not for the first measurement.
    """

    best: S
    steps: tuple[Step, ...]
    total: Step | None
    complete: bool
    needs: float | None = None


class Measures(Protocol[S]):
    """What the search asks."""

    def choices(self, dimension: str, current: S, within: Within) -> Sequence[Choice[S]] | str:
        """What there is to try from here; or why the dimension cannot matter.

        Raises
        ------
        NoTimeError
            If it takes longer than so many seconds.
        """

    def round(self, purpose: str, subjects: Sequence[tuple[str, S]], within: Within) -> Sequence[Measured]:
        """Measure these, by name, one after the other and in this order.

        Raises
        ------
        NoTimeError
            If it takes longer than so many seconds.
        """

    def answered(self, purpose: str, subjects: Sequence[tuple[str, S]]) -> bool:
        """Whether a search that is gone on with asked for this round next."""

    def check(self, name: str, subject: S, within: Within) -> str | None:
        """Why something that is faster must not be kept all the same, such as other results; None if nothing is.

        Raises
        ------
        NoTimeError
            If it takes longer than so many seconds.
        """

    def time_left(self) -> float:
        """Seconds."""

    def told(self, step: Step) -> None:
        """A dimension is decided."""


@dataclass
class _Clock(Generic[S]):
    """How long a measurement takes, and whether there is time for some more beside the last comparison.

    ``least`` and ``most`` are the measurements that the last comparison takes.
    """

    measures: Measures[S]
    least: int
    most: int
    #: Seconds of all that were made, and of those in comparisons, where each is loaded for itself.
    seconds: list[float] = field(default_factory=list)
    compared: list[float] = field(default_factory=list)
    #: What there was to begin with; none of it is over while measurements are only repeated from a journal.
    _whole: float = inf

    @property
    def each(self) -> float:
        """Seconds that a measurement takes."""
        known = self.compared or self.seconds
        return sum(known) / len(known) if known else 0.0

    def has_time(self, more: int, *, last: bool = False) -> bool:
        """Whether there is time for so many more. ``last``: for the last comparison, which has all of it."""
        return self._left(last) > self.each * more

    def within(self, *, last: bool = False) -> float:
        """Seconds for what there was time for: if it takes them, others would have been done long before."""
        return self._left(last) + UNEVEN * self.each

    def _left(self, last: bool) -> float:
        left = self.measures.time_left()
        if self._whole == inf:
            self._whole = left
        kept_back = min(max(KEPT_BACK * self._whole, self.least * self.each), self.most * self.each)
        return left if last else left - kept_back

    def round(self, purpose: str, subjects: Sequence[tuple[str, S]], *, last: bool = False) -> list[Measured]:
        found = list(self.measures.round(purpose, subjects, partial(self.within, last=last)))
        self.seconds += [each.seconds for each in found]
        return found


def search(start: S, dimensions: Sequence[str], measures: Measures[S], *, passes: int = PASSES) -> Found[S]:
    """Search.

    Parameters
    ----------
    start
        Where it begins: the defaults.
    dimensions
        Names of what may be changed, in the order in which that is tried.
    measures
        Who measures.
    passes
        How often all dimensions are gone through; once more only if something was kept.
    """
    decisions = max(passes * len(dimensions), 1)
    level, last_level = ERROR / 2 / decisions, ERROR / 2
    ends = _ends(last_level)
    clock = _Clock(measures, 2 * ends[0], 2 * ends[-1])
    nothing, needs = _first(start, clock, level)
    if nothing is not None:
        steps = tuple(Step(dimension, why=nothing) for dimension in dimensions)
        for step in steps:
            measures.told(step)
        return Found(start, steps, None, False, needs)
    best, kept_any = start, False
    history: list[Step] = []
    complete = True
    for number in range(passes):
        changed = False
        for dimension in dimensions:
            step, found = Step(dimension, why=NO_TIME), best
            if clock.has_time(2):
                step, found = _decide(dimension, best, clock, level)
            complete = complete and step.why != NO_TIME
            if step.kept or number == 0 or step.tried:
                history.append(step)
                measures.told(step)
            if step.kept:
                best, changed, kept_any = found, True, True
        if not changed:
            break
    if not kept_any:
        return Found(start, tuple(history), None, complete)
    total = _compare(Step("all of it", "what was kept"), start, best, clock, last_level, last=True)
    measures.told(total)
    return Found(best if total.kept else start, tuple(history), total, complete and total.why != NO_TIME)


def _first(start: S, clock: _Clock[S], level: float) -> tuple[str | None, float | None]:
    """Measure what the search begins with. Why that is all, if it is; and the seconds that are needed for more.

    If it took too long, it is measured once more: the first time, its file may have come from the disk.
    """
    # A single choice: screened, confirmed, and its results compared; then all of it against the defaults.
    count = 2 * SCREENING + 2 * _ends(level)[0] + CHECKING
    nothing = NO_TIME
    defaults = "the defaults", [("the defaults", start)]
    for _ in range(2):
        if not clock.has_time(len(clock.seconds), last=True):
            break
        nothing = NO_MEASUREMENT
        try:
            [found] = clock.round(*defaults, last=True)
        except NoTimeError:
            break
        if found.cost is None:
            return f"the best so far failed: {found.failure}", None
        clock.seconds = [found.seconds]
        # A search that is gone on with had less time, and may have measured them once more.
        if clock.has_time(count) and not clock.measures.answered(*defaults):
            return None, None
    if not clock.seconds:
        return nothing, None
    with_last = max(count / (1 - KEPT_BACK), count + clock.least)
    return NO_TIME, (with_last + 2) * clock.each  # this measurement, and one to spare


def _ends(level: float) -> list[int]:
    """After how many rounds a comparison is looked at."""
    return [rounds_needed(level / len(LOOKS)) * times for times in LOOKS]


def _decide(dimension: str, best: S, clock: _Clock[S], level: float) -> tuple[Step, S]:
    """One dimension: screen its choices, and confirm the best of them. What takes too long is no more decided."""
    try:
        return _in_time(dimension, best, clock, level)
    except NoTimeError:
        return Step(dimension, why=NO_TIME), best


def _in_time(dimension: str, best: S, clock: _Clock[S], level: float) -> tuple[Step, S]:
    listed = clock.measures.choices(dimension, best, clock.within)
    if isinstance(listed, str):
        return Step(dimension, why=listed), best
    refused = [choice for choice in listed if choice.refused is not None]
    alive = [choice for choice in listed if choice.refused is None]
    plain = Step(dimension, tried=len(alive), refused=len(refused))
    if not alive:
        reason = refused[0].refused if refused else None
        return Step(dimension, why=reason or "there is nothing else to try", refused=len(refused)), best
    gains: dict[int, list[float]] = {id(choice): [] for choice in alive}
    for number in range(SCREENING):
        if not clock.has_time(1 + len(alive)):
            return replace(plain, why=NO_TIME), best
        subjects = [("best so far", best), *((choice.name, choice.subject) for choice in alive)]
        order = range(len(subjects)) if number % 2 == 0 else range(len(subjects) - 1, -1, -1)
        found = dict(zip(order, clock.round(f"{dimension}, screening", [subjects[at] for at in order]), strict=True))
        reference = found[0].cost
        if reference is None:
            return replace(plain, why=f"the best so far failed: {found[0].failure}"), best
        working = []
        for at, choice in enumerate(alive, 1):
            cost = found[at].cost
            if cost is not None:
                gains[id(choice)].append(reference - cost)
                working.append(choice)
        if not working:
            why = f"{'it' if len(alive) == 1 else 'each of them'} failed: {found[1].failure}"
            return replace(plain, name=alive[0].name, why=why), best
        working.sort(key=lambda choice: -_promise(gains[id(choice)]))
        near = [choice for choice in working if _promise(gains[id(choice)]) > -FAR] or working[:1]
        # What disturbs makes slower, and one round may have been disturbed: only what is far behind leaves after it.
        alive = near if number == 0 else near[: max(1, -(-len(near) // 2))]
        if _promise(gains[id(alive[0])]) <= -FAR:
            break
    chosen = alive[0]
    if _promise(gains[id(chosen)]) < GAIN_MIN:
        return replace(plain, name=chosen.name, why="not faster"), best
    step = _compare(replace(plain, name=chosen.name), best, chosen.subject, clock, level)
    if not step.kept:
        return step, best
    if not clock.has_time(CHECKING):
        return replace(step, kept=False, why=NO_TIME), best
    try:
        objection = clock.measures.check(chosen.name, chosen.subject, clock.within)
    except NoTimeError:
        objection = NO_TIME
    if objection is not None:
        return replace(step, kept=False, why=objection), best
    return step, chosen.subject


def _compare(plain: Step, first: S, second: S, clock: _Clock[S], level: float, *, last: bool = False) -> Step:
    """Measure both in rounds, in turn first and second, and decide.

    It is looked at after the rounds that it takes at least, and after three times as many if it is not hopeless; each
    look has its share of the chance to err. The second look is earlier if the time is over: that does not depend on
    what was measured. ``last``: all the time that there is.
    """
    ends = _ends(level)
    differences: list[float] = []
    kept, why = False, "no faster beyond the noise"
    for number in range(ends[-1]):
        pair = [("best so far", first), (plain.name, second)]
        turned = number % 2 == 1
        found: list[Measured] = []
        if clock.has_time(2, last=last):
            with suppress(NoTimeError):
                purpose = f"{plain.dimension}, confirmation"
                found = clock.round(purpose, pair[::-1] if turned else pair, last=last)
        if not found:
            kept = len(differences) > ends[0] and is_better(differences, level / len(LOOKS))
            why = "" if kept else NO_TIME
            break
        clock.compared += [each.seconds for each in found]
        before, after = found[::-1] if turned else found
        if before.cost is None or after.cost is None:
            why = f"a measurement failed: {before.failure or after.failure}"
            break
        differences.append(before.cost - after.cost)
        if len(differences) in ends and is_better(differences, level / len(LOOKS)):
            kept, why = True, ""
            break
        hopeless = len(differences) >= HOPELESS and _promise(differences) < GAIN_MIN / 2
        if hopeless or not can_still_win(differences, ends[-1], level / len(LOOKS)):
            break
    if not differences:
        return replace(plain, why=why)
    gain, low, high = map(exp, (typical(differences), *interval(differences)))
    return replace(plain, kept=kept, why=why, differences=tuple(differences), gain=gain, low=low, high=high)


def _promise(gains: Sequence[float]) -> float:
    """What a choice seems to gain: the middle one of the rounds, of two the better."""
    return sorted(gains)[len(gains) // 2]
