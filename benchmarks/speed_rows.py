"""What benchmarks/speed.py compares, and the rounds in which it measures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from speed_judge import Judged, Verdict, either, judge


class Asks(Protocol):
    """Whoever measures: ``speed_sides.Sides``, or what a test puts in its place."""

    def ask(self, side: str, work: str) -> dict[str, float]:
        """Measure once, or raise an exception that says why not."""


@dataclass(frozen=True)
class Row:
    """One comparison: ``ours``, or its ratio to ``beside``.

    Attributes
    ----------
    name, ours, beside : str
        What it is called; the quantities; ``beside`` may be empty.
    target : float or None
        What is to be reached: at least this, or with ``at_most`` at most.
    unit : str
        Of both quantities.
    goal : str
        What is to be reached with any one of the rows of a group that have this name; empty if the row stands alone.
    """

    name: str
    ours: str
    beside: str = ""
    target: float | None = None
    at_most: bool = False
    unit: str = "tokens/s"
    goal: str = ""


@dataclass(frozen=True)
class Group:
    """What is measured in one round, one after the other, and the rows that come of it."""

    name: str
    measures: Sequence[tuple[str, str]]
    rows: Sequence[Row]


@dataclass
class Measured:
    """The rounds of a group: quantities, and what failed."""

    rounds: list[dict[str, float]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


PLANS = [("new", "plan"), ("new", "split")]
GROUPS = (
    Group(
        "writing",
        [
            ("llama-bench", "decode"),
            ("moebind", "greedy_wall"),
            ("moebind", "greedy"),
            ("other", "greedy"),
            ("moebind", "sampled"),
            ("other", "sampled"),
            ("moebind", "between"),
        ],
        [
            Row("greedy decode : llama-bench", "greedy_wall", "bench_decode", 0.98),
            Row("greedy decode : llama-cpp-python", "greedy", "other_greedy"),
            Row("time outside llama_decode", "outside_us", target=60, at_most=True, unit="µs a token"),
            Row("decode with samplers : without", "sampled", "greedy", 0.95),
            Row("decode with samplers : llama-cpp-python", "sampled", "other_sampled"),
        ],
    ),
    Group(
        "schema",
        [("moebind", "greedy"), ("moebind", "constrained"), ("other", "constrained")],
        [
            Row("JSON schema decode : greedy decode, 49,152 tokens", "constrained", "greedy", 0.90),
            Row("JSON schema decode : llama-cpp-python", "constrained", "other_constrained"),
        ],
    ),
    Group(
        "vocabulary",
        [("moebind", "wide_greedy"), ("moebind", "wide_constrained")],
        [Row("JSON schema decode : greedy decode, 150,000 tokens", "wide_constrained", "wide_greedy", 0.90)],
    ),
    Group(
        "prompt",
        [("llama-bench", "prompt"), ("moebind", "prompt"), ("other", "prompt")],
        [
            Row("prompt : llama-bench", "prompt_wall", "bench_prompt", 0.99),
            Row("prompt : llama-cpp-python", "prompt", "other_prompt"),
        ],
    ),
    Group(
        "sequences",
        [("llama-batched-bench", ""), ("moebind", "sequences")],
        [Row("several sequences : llama-batched-bench", "sequences", "batched_bench", 0.98)],
    ),
    Group(
        "text",
        [("moebind", "text"), ("other", "text")],
        [
            Row("tokenise : llama-cpp-python", "tokenise", "other_tokenise", unit="characters/s"),
            Row("detokenise : llama-cpp-python", "detokenise", "other_detokenise", unit="characters/s"),
        ],
    ),
    Group(
        "state",
        [("moebind", "state"), ("other", "state")],
        [
            Row("take a state : llama-cpp-python", "state_save", "other_state_save", unit="states/s"),
            Row("put a state back : llama-cpp-python", "state_load", "other_state_load", unit="states/s"),
        ],
    ),
    Group(
        "load",
        [("moebind", "load"), ("other", "load")],
        [Row("load : llama-cpp-python", "load", "other_load", 1.0, unit="loads/s")],
    ),
    Group(
        "import",
        [("new", "imports"), ("new", "other")],
        [
            Row("import moebind : import numpy", "import_ms", "numpy_ms", 0.4, at_most=True, unit="ms"),
            Row("from moebind import Model : import numpy", "import_model_ms", "numpy_ms", at_most=True, unit="ms"),
            Row("from moebind import Model : import llama_cpp", "import_model_ms", "other_import_ms", unit="ms"),
        ],
    ),
    Group(
        "plan",
        PLANS,
        [
            Row("plan of 25 GB", "plan_ms", target=40, at_most=True, unit="ms", goal="25 GB"),
            Row("plan of 25 GB : import numpy", "plan_ms", "plan_numpy_ms", 0.3, at_most=True, unit="ms", goal="25 GB"),
            Row("plan of 380 GB in nine files", "split_ms", target=150, at_most=True, unit="ms", goal="380 GB"),
            Row(
                "plan of 380 GB in nine files : import numpy",
                "split_ms",
                "split_numpy_ms",
                1.2,
                at_most=True,
                unit="ms",
                goal="380 GB",
            ),
        ],
    ),
    Group(
        "embeddings",
        [("moebind", "embed"), ("moebind", "embed_plain")],
        [Row("embed short texts : plain llama.cpp batches", "embed", "embed_plain", 0.97, unit="texts/s")],
    ),
)


def measure(group: Group, sides: Asks, rounds: int, most: int, found: Measured | None = None) -> Measured:
    """Measure a group in rounds, forwards and backwards in turn, until its rows are decided.

    There are at least ``rounds`` of them, and at most ``most``. What fails once is not tried again.
    """
    found = Measured() if found is None else found
    while len(found.rounds) < most:
        if len(found.rounds) >= rounds and not any(_open(group, row, found) for row in group.rows):
            break
        values: dict[str, float] = {}
        for side, work in list(group.measures)[:: -1 if len(found.rounds) % 2 else 1]:
            name = f"{side} {work}".strip()
            if name in found.failures:
                continue
            try:
                values |= sides.ask(side, work)
            except Exception as error:  # whatever it is, the other measurements go on
                found.failures[name] = str(error) or type(error).__name__
        found.rounds.append(values)
        print(f"{group.name}, round {len(found.rounds)}", file=sys.stderr, flush=True)
        if not values:
            break
    return found


def judged(row: Row, found: Measured) -> Judged | None:
    """What the rounds say of a row; None if it was not measured."""
    values = list(ratios(row, found))
    return judge(values, row.target, row.at_most) if values else None


def verdict(group: Group, row: Row, found: Measured) -> Verdict | None:
    """Whether a row's goal is reached, by its own target or by another row's; None if there is none or no rounds."""
    rows = [each for each in group.rows if each is row or (row.goal and each.goal == row.goal)]
    known = [judged(each, found) for each in rows if each.target is not None]
    return either([each.verdict for each in known if each is not None and each.verdict])


def ratios(row: Row, found: Measured) -> Iterator[float]:
    """The value of a row in each round."""
    for each in found.rounds:
        if row.ours in each and (not row.beside or row.beside in each):
            yield each[row.ours] / (each[row.beside] if row.beside else 1.0)


def _open(group: Group, row: Row, found: Measured) -> bool:
    """Whether more rounds could tell more of it."""
    known = judged(row, found)
    if known is None:
        return False
    return verdict(group, row, found) == "not decided" if row.target is not None else not known.concluded
