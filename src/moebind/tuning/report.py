"""What a search found, as a table and in sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from moebind._core.sizes import show_size
from moebind._core.tables import Column, text_table
from moebind.bench.agreement import Agreement
from moebind.tuning.configuration import Configuration, Process
from moebind.tuning.decision import ERROR
from moebind.tuning.goals import Goal
from moebind.tuning.search import NO_TIME, Step
from moebind.tuning.speculation import Speculation
from moebind.tuning.trials import Trial

__all__ = ["Findings", "explained", "line", "medians", "table"]

#: How many comparisons a search should have time for, and the tokens from which on its texts can well be shorter.
SEVERAL = 4
SHORT = 64


@dataclass(frozen=True)
class Findings:
    """What was measured, and what came of it: :class:`moebind.Tuning`, which is one, describes the attributes."""

    goal: Goal
    process: Process
    start: Configuration
    steps: tuple[Step, ...]
    total: Step | None
    trials: tuple[Trial, ...] = field(repr=False)
    agreements: Mapping[str, Agreement]
    complete: bool
    needs: float | None
    speculation: Speculation | None

    @property
    def kept(self) -> tuple[Step, ...]:
        """The steps that were kept; none if what they gave together was no more than noise."""
        return tuple(step for step in self.steps if step.kept) if self.total is not None and self.total.kept else ()

    @property
    def decided(self) -> bool:
        """Whether there was time to compare something with the defaults, or nothing to compare."""
        if self.total is not None:
            return self.total.why != NO_TIME
        return self.complete or any(step.name for step in self.steps)


def table(found: Findings) -> list[str]:
    """A line for each step; one for all for which there was no time, and that alone where there was none for any."""
    columns = [Column("what", left=True), Column("best choice", left=True), Column("times as fast"), Column("95 %")]
    columns += [Column("rounds"), Column("kept", left=True)]
    rows: list[list[object]] = []
    for step, *others in _together([*found.steps, *([] if found.total is None else [found.total])]):
        if others:
            rows.append([line(step, *others)])
            continue
        verdict = "yes" if step.kept else f"no: {step.why}"
        if step.gain is None or step.low is None or step.high is None:
            rows.append([step.dimension, step.name, "", "", "", verdict])
        else:
            times = f"{step.low:.2f} to {step.high:.2f}"
            rows.append([step.dimension, step.name, f"{step.gain:.3f}", times, len(step.differences), verdict])
    if rows and all(len(row) == 1 for row in rows):
        return [str(row[0]) for row in rows]
    return text_table(columns, rows)


def line(step: Step, *others: Step) -> str:
    """A step in a line, with others for which there was no time either."""
    what = ", ".join(each.title for each in (step, *others))
    if step.gain is None:
        return f"{what}: {step.why}"
    speed = f"{step.gain:.3f} times as fast ({step.low:.2f} to {step.high:.2f})"
    return f"{what}: {speed}, {'kept' if step.kept else f'not kept: {step.why}'}"


def _together(steps: Iterable[Step]) -> list[list[Step]]:
    """The steps in order; those for which there was no time in one place, for each reason."""
    lines: list[list[Step]] = []
    for step in steps:
        same = next((each for each in lines if step.out_of_time and each[0].why == step.why), None)
        if same is None:
            lines.append([step])
        else:
            same.append(step)
    return lines


def explained(found: Findings) -> str:
    """Sentences."""
    parts = ", ".join(f"{name} {weight:.0%}" for name, weight in found.goal.weights.items())
    work = f"{found.goal.n_prompt} tokens of prompt and {found.goal.n_generate} after it"
    if found.goal.n_sequences > 1:
        work = f"{found.goal.n_sequences} sequences side by side, each of {work}"
    lines = [f"For {found.goal.name} ({parts}), measured with {work}."]
    if not found.trials and not found.decided:
        lines.append("Nothing was measured: the defaults are kept.")
    elif found.total is None and not found.decided:
        lines.append("There was no time to compare anything with the defaults: they are kept.")
    elif found.total is None and not any(step.name for step in found.steps):
        lines.append("There was nothing to compare with the defaults: they are kept.")
    elif found.total is None:
        lines.append("Nothing was faster than the defaults beyond the noise: they are kept.")
    elif not found.total.kept:
        lines.append(f"All of it together: {found.total.why}; the defaults are kept.")
    else:
        interval = f"95 %: {found.total.low:.3f} to {found.total.high:.3f}"
        speed = f"{found.total.gain:.3f} times as fast as the defaults ({interval})"
        lines.append(
            f"{' + '.join(step.name for step in found.kept)}: {speed}, in {len(found.total.differences)} rounds."
        )
        lines += [
            f"{part}: {_number(before)} -> {_number(after)} tokens/s (medians)."
            for part, (before, after) in medians(found).items()
        ]
    for name, each in found.agreements.items():
        lines.append(
            f"{name}: a divergence of {each.mean_kl:.1e} nats from the defaults, the same likeliest token at "
            f"{each.same_top:.0%} of {each.n_positions} positions, {each.same_continuations} of {each.n_prompts} "
            "texts equal."
        )
    if found.process.environment or found.process.cpus:
        words = [f"{name}={value}" for name, value in found.process.environment.items()]
        words += [f"taskset -c {','.join(map(str, found.process.cpus))}"] if found.process.cpus else []
        lines.append(f"For other programs: {' '.join(words)} before the command.")
    failed = sum(trial.failure is not None for trial in found.trials)
    of_which = f", {failed} of which failed" if failed else ""
    plural = "" if len(found.trials) == 1 else "s"
    if found.trials:
        lines.append(
            f"{len(found.trials)} measurement{plural}{of_which}; all decisions together keep something that is no "
            f"faster with a chance of at most {ERROR:.0%}."
        )
    lines += _unplanned(found)
    if found.needs is not None:
        lines.append(
            f"There was less time than a single comparison of this model takes, about {_minutes(found.needs)} minutes: "
            f"{_instead(found, found.needs)}."
        )
    elif not found.trials:
        lines.append("There was no time for a single measurement: give more minutes; resume=True goes on.")
    elif not found.complete:
        lines.append("There was no time for all of it: resume=True goes on.")
    return "\n".join(lines)


def _unplanned(found: Findings) -> Iterator[str]:
    """What took more memory than it was planned to, by the most that it was."""
    most: dict[tuple[str, str], int] = {}
    for trial in found.trials:
        for device, size in trial.unplanned.items():
            most[trial.name, device] = max(size, most.get((trial.name, device), 0))
    for (name, device), size in most.items():
        yield f"{name}: it took {show_size(size)} more of {device} than was planned."


def _instead(found: Findings, seconds: float) -> str:
    """What to give where so many seconds are too few for a single comparison."""
    ways = [f"give minutes={math.ceil(SEVERAL * seconds / 60)} or more (resume=True goes on)"]
    if found.goal.n_tokens >= SHORT:
        n_prompt, n_generate = (max(1, count // 4) for count in (found.goal.n_prompt, found.goal.n_generate))
        ways.append(f"shorter texts, such as n_prompt={n_prompt} and n_generate={n_generate}")
    if len(found.steps) > 1:
        ways.append("only some dimensions (dimensions=[...])")
    return ", or ".join(ways)


def _minutes(seconds: float) -> str:
    """Rounded up, so that it is enough."""
    return f"{math.ceil(seconds / 6) / 10:.1f}" if seconds < 600 else f"{math.ceil(seconds / 60)}"


def medians(found: Findings) -> dict[str, tuple[float, float]]:
    """Tokens a second of each part in the last comparison, medians: of the defaults, and of what was found."""
    last = [each for each in found.trials if each.purpose.startswith("all of it") and each.failure is None]
    speeds = {}
    for part in found.goal.weights:
        before = [each.speeds[part] for each in last if each.configuration == found.start]
        after = [each.speeds[part] for each in last if each.configuration != found.start]
        if before and after:
            speeds[part] = statistics.median(before), statistics.median(after)
    return speeds


def _number(value: float) -> str:
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f}"
