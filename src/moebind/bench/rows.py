"""The rows of a report: what was measured of each placement, as objects and as plain values."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from moebind._core.shown import shown
from moebind.backend.breakdown import PARTS, BufferMemory, DeviceMemory, MemoryBreakdown
from moebind.backend.timings import MoeCacheStats
from moebind.bench.agreement import Agreement
from moebind.bench.measure import TimedRun
from moebind.bench.resident_memory import Resident, Seen
from moebind.enums import DeviceType

__all__ = ["OffloadRow", "OffloadRows", "Samples", "memory_record", "read_memory", "read_row"]

QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Samples:
    """Values of one thing that was measured several times.

    Attributes
    ----------
    values : tuple[float, ...]
        Each of them, in order.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Their standard deviation (of a sample: divided by one less than there are)."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass(frozen=True)
class OffloadRow:
    """One placement: what it took and how fast it was, or why it failed.

    Attributes
    ----------
    name : str
        The placement's name.
    failure : str or None
        Why there are no numbers; all below are then None or empty.
    date : str
        When it was measured, UTC.
    key : str
        What tells whether a row can be taken for what is asked for: a hash of the files' checksums, parameters,
        devices, settings, build and machine.
    model_params, context_params : Mapping[str, object]
        What differs from the defaults, also what ``fit`` found.
    load : float or None
        Seconds that the load and the context took.
    runs : tuple[TimedRun, ...]
        Each run, with all its stamps.
    predicted, allocated : MemoryBreakdown or None
        What :func:`moebind.plan` said before the load, and what the context held after the runs.
    before, held : Seen or None
        Memory as seen from outside, before the load, when devices were in use already, and after the runs.
    nvml : str or None
        Why NVML could not be asked.
    agreement : Agreement or None
        With the first placement's logits.
    moe_cache : MoeCacheStats or None
        What the placement's cache of experts counted in all runs, those to warm up included; None if it has none.
    load_average : float or None
        How many processes wanted to compute, on average of a minute, when the call began that measured it.
    """

    name: str
    failure: str | None
    date: str
    key: str
    model_params: Mapping[str, object] = field(default_factory=dict)
    context_params: Mapping[str, object] = field(default_factory=dict)
    load: float | None = None
    runs: tuple[TimedRun, ...] = ()
    predicted: MemoryBreakdown | None = None
    allocated: MemoryBreakdown | None = None
    before: Seen | None = None
    held: Seen | None = None
    nvml: str | None = None
    agreement: Agreement | None = None
    moe_cache: MoeCacheStats | None = None
    load_average: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it was measured."""
        return self.failure is None

    @property
    def prompt(self) -> Samples | None:
        """Tokens per second of the prompts."""
        return Samples(tuple(run.prompt_speed for run in self.runs)) if self.runs else None

    @property
    def decode(self) -> Samples | None:
        """Tokens per second, computed one at a time."""
        return Samples(tuple(run.decode_speed for run in self.runs)) if self.runs else None

    @property
    def first_token(self) -> Samples | None:
        """Seconds from a prompt's text to the first token."""
        return Samples(tuple(run.first_token for run in self.runs)) if self.runs else None

    @property
    def token_quantiles(self) -> dict[float, float]:
        """Seconds from one token to the next, over all runs: least, a tenth, median, nine tenths, 99 %, most."""
        intervals = [interval for run in self.runs for interval in run.intervals]
        if not intervals:
            return {}
        return dict(zip(QUANTILES, np.quantile(intervals, QUANTILES).tolist(), strict=True))

    @property
    def worst_error(self) -> int | None:
        """Bytes by which the plan was off, of that device and class (weights, cache, scratch) where it was most."""
        if self.predicted is None or self.allocated is None:
            return None
        held = {device.name: device for device in self.allocated.devices}
        return max(
            max(abs(int(getattr(device, part)) - int(getattr(held[device.name], part))) for part in PARTS)
            for device in self.predicted.devices
            if device.name in held
        )

    @property
    def device_bytes_seen(self) -> int | None:
        """Bytes on devices as seen from outside: of cards by their drivers, of loopback workers by their growth.

        None if neither is there.
        """
        if self.held is None or self.before is None:
            return None
        grown = [
            held.total - self.before.workers[name].total
            for name, held in self.held.workers.items()
            if name in self.before.workers
        ]
        cards = self.held.gpu or {}
        if not cards and self.held.cards and self.before.cards:  # nobody else is taken to have changed
            used = {name: size - self.before.cards.get(name, 0) for name, size in self.held.cards.items()}
            cards = {name: size for name, size in used.items() if size > 0}
        # CUDA keeps some memory for itself on each card of the machine, also on those that hold nothing of the model.
        ours = {device.name for device in self.allocated.devices} if self.allocated is not None else set()
        sizes = [size for name, size in cards.items() if name in ours] or list(cards.values())
        return sum(grown) + sum(sizes) if grown or sizes else None


@dataclass(frozen=True)
class OffloadRows:
    """All rows of a benchmark, and the conditions: what tables and pictures are made of.

    :class:`OffloadReport`, which is one, describes the attributes.
    """

    rows: tuple[OffloadRow, ...]
    reference: str | None
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[OffloadRow]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> OffloadRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"there is no row {shown(name)}; there are {', '.join(row.name for row in self.rows)}")

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(row.ok for row in self.rows)

    def reduction(self, name: str) -> float | None:
        """How much less a placement holds on devices than the first one: 0.94 is 94 % saved. None if one failed."""
        row = self[name]
        first = self[self.reference].allocated if self.reference is not None else None
        return row.allocated.reduction_vs(first) if row.allocated is not None and first is not None else None


def memory_record(breakdown: MemoryBreakdown) -> list[dict[str, object]]:
    """A breakdown, or a plan, as plain values: bytes by device, class and buffer type."""
    return [{**asdict(device), "type": device.type.name} for device in breakdown.devices]


def read_memory(devices: Sequence[Mapping[str, Any]] | None) -> MemoryBreakdown | None:
    """A breakdown from plain values."""
    if devices is None:
        return None
    return MemoryBreakdown(
        tuple(
            DeviceMemory(
                **{
                    **device,
                    "type": DeviceType[device["type"]],
                    "buffers": tuple(BufferMemory(**buffer) for buffer in device["buffers"]),
                }
            )
            for device in devices
        )
    )


def _read_seen(fields: Mapping[str, Any] | None) -> Seen | None:
    if fields is None:
        return None
    process = None if fields["process"] is None else Resident(**fields["process"])
    workers = {name: Resident(**each) for name, each in fields["workers"].items()}
    return Seen(process, workers, fields["gpu"], fields["cards"])


def read_row(row: Mapping[str, Any]) -> OffloadRow:
    """A row from plain values.

    Raises
    ------
    ValueError
        If something is missing, or something else.
    """
    agreement = row.get("agreement")
    try:
        return OffloadRow(
            name=str(row["name"]),
            failure=row["failure"],
            date=row["date"],
            key=row["key"],
            model_params=row["model_params"],
            context_params=row["context_params"],
            load=row["load"],
            runs=tuple(TimedRun(**{**run, "stamps": tuple(run["stamps"])}) for run in row["runs"]),
            predicted=read_memory(row["predicted"]),
            allocated=read_memory(row["allocated"]),
            before=_read_seen(row["before"]),
            held=_read_seen(row["held"]),
            nvml=row["nvml"],
            agreement=None if agreement is None else Agreement(**agreement),
            moe_cache=None if row.get("moe_cache") is None else MoeCacheStats(**row["moe_cache"]),
            load_average=row.get("load_average"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a row lacks something: {error}") from error
