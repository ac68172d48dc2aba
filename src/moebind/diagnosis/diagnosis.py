"""The report of :func:`moebind.doctor`: its findings, and the machine that they are about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import overload

from moebind._core.pictures import html_of
from moebind._core.version import __version__
from moebind.diagnosis.facts import Facts

__all__ = ["Diagnosis", "Finding", "Severity", "show_gib"]


class Severity(IntEnum):
    """How much a finding matters."""

    INFO = 0
    """Good to know."""
    WARNING = 1
    """It works, but this machine could do it faster, or do more of it."""
    PROBLEM = 2
    """The load that you asked for will fail."""


@dataclass(frozen=True)
class Finding:
    """One thing that :func:`moebind.doctor` found.

    Attributes
    ----------
    what : str
        What was found.
    why : str
        The evidence, or the cause.
    do : str
        What to do about it.
    severity : Severity
        How much it matters.
    """

    what: str
    why: str
    do: str
    severity: Severity = Severity.INFO

    def __str__(self) -> str:
        return f"{self.severity.name.lower()}: {self.what}\n    why: {self.why}\n    do:  {self.do}"


class Diagnosis(Sequence[Finding]):
    """The findings of :func:`moebind.doctor`: a sequence, the most severe first. Printing it gives a report.

    Attributes
    ----------
    facts
        The facts that were read, before they were judged.
    """

    def __init__(self, facts: Facts, findings: Sequence[Finding]) -> None:
        wrong = [finding for finding in findings if not isinstance(finding, Finding)]
        if wrong or not isinstance(facts, Facts):
            raise TypeError("a Diagnosis is made by doctor(), of what it read and of findings")
        self.facts = facts
        self._findings = tuple(sorted(findings, key=lambda finding: -finding.severity))

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Finding, ...]: ...
    def __getitem__(self, index: int | slice) -> Finding | tuple[Finding, ...]:
        return self._findings[index]

    def __len__(self) -> int:
        return len(self._findings)

    def __repr__(self) -> str:
        counts = [sum(finding.severity is severity for finding in self) for severity in reversed(Severity)]
        return f"<Diagnosis: {counts[0]} problems, {counts[1]} warnings, {counts[2]} more>"

    @property
    def ok(self) -> bool:
        """Whether there is no finding above INFO."""
        return all(finding.severity is Severity.INFO for finding in self)

    def __str__(self) -> str:
        return "\n".join([*_summary(self.facts), "", *map(str, self)])

    def _repr_html_(self) -> str:
        """What a notebook shows: the report."""
        return html_of(str(self))


def _summary(facts: Facts) -> Iterator[str]:
    yield f"moebind {__version__}, llama.cpp {facts.llama_cpp} ({facts.commit}), backends {', '.join(facts.backends)}"
    yield f"CUDA is {facts.cuda_verdict}"
    driver = facts.nvidia_driver or ("unknown version" if facts.libcuda else "none")
    yield f"NVIDIA driver: {driver}; cards on the bus: {facts.nvidia_cards}"
    yield f"Vulkan is {facts.vulkan_verdict}"
    drivers = ", ".join(facts.vulkan_drivers) or "none"
    yield f"Vulkan drivers: {drivers}; cards of AMD's and Intel's on the bus: {facts.other_cards}"
    for device in facts.devices:
        yield f"device {device.name}: {device.description}, {show_gib(device.memory_total)}, {device.type.name}"
    quota = "" if facts.core_quota is None else f", a quota of {facts.core_quota:g}"
    yield f"cores: {facts.cores}, of which {facts.cores_allowed} for this process{quota}"
    memory = facts.memory
    limited = "" if memory.limit is None else f", limited by {memory.limit}"
    yield f"memory: {show_gib(memory.capacity)}, {show_gib(memory.free)} free{limited}"


def show_gib(count: int) -> str:
    """A size as the report has it."""
    return f"{count / 2**30:.1f} GiB"
