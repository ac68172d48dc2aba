"""A machine that is only described: what each choice costs, how choices affect each other, and how it disturbs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moebind.tuning.search import Choice, Measured, NoTimeError, Step, Within

Point = Mapping[str, int]
#: The dimension that makes room for others.
PLACEMENT = "placement"


@dataclass
class Machine:
    """A cost for each way to choose one number of each dimension.

    Attributes
    ----------
    effects
        For each dimension, the logarithm of the cost of each of its choices; the first is the default, and costs 0.
    together
        What two choices cost besides, if both are made: by two dimensions, a table.
    memory, room
        What each choice takes, by dimension, and what there is: what takes more must not be tried.
    noise
        The standard deviation of the logarithm of a measurement.
    seconds, uneven
        How long a measurement takes, and the standard deviation of the logarithm of that.
    checking
        How long the comparison of results takes, in multiples of a measurement.
    planning
        How long the choices of a dimension take.
    spikes
        The share of measurements that take half as long again.
    """

    effects: Mapping[str, Sequence[float]]
    together: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    memory: Mapping[str, Sequence[float]] = field(default_factory=dict)
    room: float = 1.0
    noise: float = 0.02
    spikes: float = 0.05
    seed: int = 1
    seconds: float = 1.0
    uneven: float = 0.0
    checking: float = 0.0
    planning: float = 0.0
    limit: float = float("inf")
    fails: frozenset[tuple[str, int]] = frozenset()
    wrong: frozenset[tuple[str, int]] = frozenset()

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.durations = np.random.default_rng(self.seed)  # of its own: what is measured is the same with any
        self.drift = 0.0
        self.used = 0.0
        self.measured: list[Point] = []
        self.results: list[Measured] = []
        self.steps: list[Step] = []

    @property
    def start(self) -> Point:
        return dict.fromkeys(self.effects, 0)

    def cost(self, point: Point) -> float:
        """Without noise."""
        alone = sum(self.effects[name][at] for name, at in point.items())
        return alone + sum(float(table[point[a], point[b]]) for (a, b), table in self.together.items())

    def takes(self, point: Point) -> float:
        return sum(self.memory[name][at] for name, at in point.items() if name in self.memory)

    def best(self) -> float:
        """The least cost, by looking at all of them."""
        names = list(self.effects)
        cost, takes = np.zeros(1), np.zeros(1)
        for at, name in enumerate(names):
            shape = [1] * len(names)
            shape[at] = -1
            cost = cost + np.reshape(self.effects[name], shape)
            takes = takes + np.reshape(self.memory.get(name, [0.0] * len(self.effects[name])), shape)
        for (first, second), table in self.together.items():
            shape = [1] * len(names)
            shape[names.index(first)], shape[names.index(second)] = table.shape
            cost = cost + (table if names.index(first) < names.index(second) else table.T).reshape(shape)
        return float(cost[takes <= self.room].min())

    def choices(self, dimension: str, current: Point, within: Within) -> list[Choice[Point]] | str:
        self._spend(self.planning, within)
        if len(self.effects[dimension]) == 1:
            return "there is only one"
        found = []
        for at in range(len(self.effects[dimension])):
            point = {**current, dimension: at}
            if at == current[dimension]:
                continue
            if self.takes(point) > self.room and dimension != PLACEMENT and PLACEMENT in self.memory:
                point = self._placed_anew(point)
            refused = "it takes too much" if self.takes(point) > self.room else None
            found.append(Choice(f"{dimension} {at}", point, refused))
        return found

    def _placed_anew(self, point: Point) -> Point:
        """With the placement that takes the most of what there is room for: what a fit finds."""
        fitting = [
            at for at in range(len(self.effects[PLACEMENT])) if self.takes({**point, PLACEMENT: at}) <= self.room
        ]
        return {**point, PLACEMENT: max(fitting, key=lambda at: self.memory[PLACEMENT][at])} if fitting else point

    def round(self, purpose: str, subjects: Sequence[tuple[str, Point]], within: Within) -> list[Measured]:
        until = self.used + within()
        found = [self._measure(point, until) for _, point in subjects]
        self.results += found
        return found

    def answered(self, purpose: str, subjects: Sequence[tuple[str, Point]]) -> bool:
        return False

    def _measure(self, point: Point, until: float) -> Measured:
        seconds = self.seconds * self.durations.lognormal(0.0, self.uneven)
        if self.used + seconds > until:
            self.used = until
            raise NoTimeError
        self.measured.append(point)
        self.used += seconds
        if self.fails & set(point.items()):
            return Measured(None, "the process was ended by SIGSEGV", seconds)
        self.drift += self.random.normal(0, self.noise / 2)
        disturbed = 0.4 * (self.random.random() < self.spikes)
        return Measured(self.cost(point) + self.drift + self.random.normal(0, self.noise) + disturbed, None, seconds)

    def _spend(self, seconds: float, within: Within) -> None:
        most = within()
        self.used += max(0.0, min(seconds, most))
        if seconds >= most:
            raise NoTimeError

    def check(self, name: str, point: Point, within: Within) -> str | None:
        self._spend(self.checking * self.seconds, within)
        return "it computes something else" if self.wrong & set(point.items()) else None

    def time_left(self) -> float:
        return self.limit - self.used

    def told(self, step: Step) -> None:
        self.steps.append(step)


def random_machine(seed: int) -> Machine:
    """A machine as they are: what is placed better takes more room, some things do nothing, some depend on others."""
    random = np.random.default_rng(seed)

    def some(count: int, size: float) -> list[float]:
        return [0.0, *random.normal(0.0, size, count).tolist()]

    # Placements: more on the device takes more room and costs less, the default is somewhere in the middle.
    shares = [0.4, *random.uniform(0.0, 0.8, 4).tolist()]
    slope = random.uniform(-0.2, 1.2)  # on some machines, the device is the slower one
    placed = [-slope * (share - 0.4) + random.normal(0, 0.03) * (share != 0.4) for share in shares]
    larger = int(random.integers(2, 5))
    gain = random.uniform(0.0, 0.25)
    effects = {
        PLACEMENT: placed,
        "micro-batch": [0.0, *(-gain * np.sqrt(np.arange(1, larger + 1))).tolist()],
        "threads": some(4, float(random.choice([0.02, 0.3]))),
        "load mode": some(2, float(random.choice([0.0, 0.1]))),
        "repacking": some(1, 0.15),
        "attention": some(1, float(random.choice([0.0, 0.1]))),
    }
    memory = {PLACEMENT: shares, "micro-batch": [0.1 * at for at in range(larger + 1)]}
    together = {}
    for pair in ((PLACEMENT, "threads"), (PLACEMENT, "repacking"), ("micro-batch", "attention")):
        table = random.normal(0, 0.02, tuple(len(effects[name]) for name in pair))
        together[pair] = table - table[0, 0]
    return Machine(effects, together, memory, room=0.8, noise=float(random.uniform(0.003, 0.03)), seed=seed)
