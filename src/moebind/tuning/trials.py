"""Trials: configurations are measured and compared in processes of their own, and every answer goes into a journal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from moebind.bench.agreement import Agreement, agreement, read_captured
from moebind.bench.protocol import Handler, run_child
from moebind.bench.record import FailedError
from moebind.tuning.configuration import Configuration
from moebind.tuning.goals import Goal
from moebind.tuning.journal import Journal
from moebind.tuning.search import Choice, Measured, NoTimeError, Step, Within

__all__ = ["KL_MAX", "Trial", "Trials"]

_PLANNING, _TRIAL = "moebind.tuning.planning_process", "moebind.tuning.trial_process"
#: The divergence, in nats, from which on a change is not kept: what rounding makes is far below.
KL_MAX = 0.02
#: How much longer a trial may take than what the search began with, and seconds besides, for a load from the disk.
SLOWER, SLACK = 10.0, 120.0


def _without_end() -> float:
    return inf


@dataclass(frozen=True)
class Trial:
    """One measurement, or why there is none.

    Attributes
    ----------
    purpose : str
        The dimension, and what was measured for: screening, confirmation.
    name : str
        The choice.
    configuration : Configuration
        All of it.
    failure : str or None
        Why there is no result: the process died, took too long, or said why it cannot.
    speeds : Mapping[str, float]
        Tokens per second, of the parts that were measured.
    memory : Mapping[str, int]
        Bytes that it held, by device.
    seconds : float
        How long it took, its share of the load included.
    unplanned : Mapping[str, int]
        Bytes that it held beyond what was planned for it, by device.
    """

    purpose: str
    name: str
    configuration: Configuration
    failure: str | None
    speeds: Mapping[str, float]
    memory: Mapping[str, int]
    seconds: float
    unplanned: Mapping[str, int] = field(default_factory=dict)


class Trials:
    """What a search asks, answered by measuring (:class:`moebind.tuning.search.Measures`).

    Parameters
    ----------
    request
        What every process is told: the model's path, devices, what was given.
    goal
        The work.
    journal
        Where the answers go.
    logits
        A folder for logits.
    prompts
        Texts on which results are compared.
    seconds
        What the search may take; what the journal answers takes nothing.
    timeout
        Seconds that one trial may take; None: by what the first one took.
    told
        What is called when a dimension is decided, and after each measurement.
    """

    def __init__(
        self,
        request: Mapping[str, Any],
        goal: Goal,
        journal: Journal,
        *,
        logits: str,
        prompts: Sequence[str],
        seconds: float,
        timeout: float | None = None,
        told: Callable[[Step | Trial], None] = lambda what: None,
        kl_max: float = KL_MAX,
    ) -> None:
        self._request = dict(request)
        self._goal = goal
        self._journal = journal
        self._logits = logits
        self._prompts = prompts
        self._ends = time.monotonic() + seconds
        self._timeout = timeout
        self._longest = 0.0
        self._told = told
        self._kl_max = kl_max
        self.trials: list[Trial] = []
        self.agreements: dict[str, Agreement] = {}
        self.began: dict[str, Any] = self._ask({"what": "start"}, self._plan)
        self.start = Configuration.from_dict(self.began["start"])
        #: What each configuration was planned to take, by device.
        self._planned = [(self.start, self.began["planned"])]

    # what the search asks

    def choices(
        self, dimension: str, current: Configuration, within: Within = _without_end
    ) -> Sequence[Choice[Configuration]] | str:
        """What there is to try.

        Raises
        ------
        NoTimeError
            If to find out takes longer than so many seconds.
        """
        question = {"what": "choices", "dimension": dimension, "current": current.to_dict()}
        found = self._ask(question, lambda asked: self._plan({**asked, "began": self.began}, _until(within)))
        if "why" in found:
            return str(found["why"])
        choices = []
        for each in found["choices"]:
            subject = Configuration.from_dict(each["subject"])
            self._planned.append((subject, each["planned"]))
            choices.append(Choice(each["name"], subject, each["refused"]))
        return choices

    def round(
        self, purpose: str, subjects: Sequence[tuple[str, Configuration]], within: Within = _without_end
    ) -> list[Measured]:
        """Measure each, those that follow each other and are loaded alike in one process.

        Raises
        ------
        NoTimeError
            If it takes longer than so many seconds.
        """
        question = _round(purpose, subjects)
        configurations = [each for _, each in subjects]
        answers = self._ask(question, lambda asked: self._measure(configurations, _until(within)))
        found = []
        for (name, configuration), answer in zip(subjects, answers, strict=True):
            trial = Trial(purpose, name, configuration, **answer, unplanned=self._unplanned(configuration, answer))
            self.trials.append(trial)
            self._told(trial)
            cost = None if trial.failure is not None else self._goal.cost(trial.speeds)
            found.append(Measured(cost, trial.failure, trial.seconds))
        return found

    def answered(self, purpose: str, subjects: Sequence[tuple[str, Configuration]]) -> bool:
        """Whether a search that is gone on with asked for this round next."""
        return self._journal.answers(_round(purpose, subjects))

    def check(self, name: str, configuration: Configuration, within: Within = _without_end) -> str | None:
        """Whether it computes what the defaults compute.

        Raises
        ------
        NoTimeError
            If that takes longer than so many seconds.
        """
        question = {"what": "check", "configuration": configuration.to_dict()}
        found = self._ask(question, lambda asked: self._compare(configuration, _until(within)))
        if found.get("failure") is not None:
            return f"its results could not be compared: {found['failure']}"
        while name in self.agreements:  # of an earlier pass, where it changed something else
            name += ", again"
        self.agreements[name] = Agreement(**found)
        if found["mean_kl"] > self._kl_max:
            return f"it computes something else: a divergence of {found['mean_kl']:.2g} nats"
        return None

    def _unplanned(self, configuration: Configuration, answer: Mapping[str, Any]) -> dict[str, int]:
        planned = next((sizes for each, sizes in reversed(self._planned) if each == configuration), None)
        if planned is None:
            return {}
        over = {name: size - planned.get(name, 0) for name, size in answer["memory"].items()}
        return {name: size for name, size in over.items() if size > 0}

    def time_left(self) -> float:
        """Seconds; what the journal answers is always in time."""
        return float("inf") if self._journal.replays else self._ends - time.monotonic()

    def told(self, step: Step) -> None:
        """Say so."""
        self._told(step)

    # how it is answered

    def _ask(self, question: Mapping[str, Any], answer: Callable[[Mapping[str, Any]], object]) -> Any:
        return self._journal.ask(question, lambda: answer(question))

    def _plan(self, question: Mapping[str, Any], until: float = inf) -> Any:
        request = {**self._request, **question, "goal": asdict(self._goal)}
        return _run(_PLANNING, request, self._timeout, until)

    def _measure(self, configurations: Sequence[Configuration], until: float) -> list[dict[str, Any]]:
        # Drafts only show in texts that are written, and so what they are compared with has to write them, too.
        writes = any(each.speculation is not None for each in configurations)
        found: list[dict[str, Any]] = []
        while len(found) < len(configurations):
            first = configurations[len(found)]
            alike = [first]
            for each in configurations[len(found) + 1 :]:
                if each.loaded != first.loaded:
                    break
                alike.append(each)
            found += self._alike(alike, until, writes=writes)
        return found

    def _alike(self, configurations: Sequence[Configuration], until: float, *, writes: bool) -> list[dict[str, Any]]:
        """Measure what is loaded alike in one process; up to the one with which it dies, if it does."""
        found: list[dict[str, Any]] = []
        begun: list[int] = []
        start = time.monotonic()

        def measured(pid: int, content: Mapping[str, Any]) -> None:
            found.append(
                {
                    "failure": content.get("failure"),
                    "speeds": content.get("speeds", {}),
                    "memory": content.get("memory", {}),
                    "seconds": content["seconds"],
                }
            )

        handlers = {"begins": lambda pid, content: begun.append(pid), "measured": measured}
        try:
            limit = self._limit(len(configurations))
            _run(_TRIAL, self._trial(configurations, writes=writes), limit, until, handlers)
        except FailedError as error:
            # Before the first has begun, it is the load that failed, and that is the same for all.
            lost = 1 if begun else len(configurations)
            failed = {"failure": str(error), "speeds": {}, "memory": {}, "seconds": 0.0}
            if len(found) < len(configurations):
                found += [dict(failed) for _ in range(lost)]
        spent = (time.monotonic() - start) / max(len(found), 1)
        if not self._longest and all(each["failure"] is None for each in found):
            self._longest = spent
        return [{**each, "seconds": round(spent, 3)} for each in found]

    def _limit(self, count: int) -> float | None:
        if self._timeout is not None:
            return self._timeout * count
        return (SLOWER * self._longest + SLACK) * count if self._longest else None

    def _trial(
        self, configurations: Sequence[Configuration], logits: str | None = None, *, writes: bool = False
    ) -> dict[str, Any]:
        """What a process is told. ``writes``: it writes texts, as drafts are measured with."""
        first = configurations[0]
        return {
            **self._request,
            "model_params": dict(first.model),
            "process": first.process.to_dict(),
            "contexts": [dict(each.context) for each in configurations],
            "speculations": [each.to_dict()["speculation"] for each in configurations],
            "writes": writes,
            "n_prompt": self._goal.n_prompt,
            "n_generate": self._goal.n_generate,
            "n_sequences": self._goal.n_sequences,
            "prompts": list(self._prompts),
            "logits": logits,
        }

    def _compare(self, configuration: Configuration, until: float) -> dict[str, Any]:
        first, other = (os.path.join(self._logits, name) for name in ("first.npz", "other.npz"))
        with suppress(FileNotFoundError):
            os.remove(other)
        for path, each in ((first, self.start), (other, configuration)):
            if path == first and os.path.exists(first):
                continue
            failures: list[str] = []

            def measured(pid: int, content: Mapping[str, Any], failures: list[str] = failures) -> None:
                failures += [content["failure"]] if content.get("failure") else []

            handlers = {"begins": lambda pid, content: None, "measured": measured}
            try:
                _run(_TRIAL, self._trial([each], path), self._limit(1), until, handlers)
            except FailedError as error:
                failures.append(str(error))
            if failures:
                return {"failure": failures[0]}
        captured = read_captured(first), read_captured(other)
        if captured[0] is None or captured[1] is None:
            return {"failure": "there are no logits"}
        return asdict(agreement(captured[0], captured[1]))


def _round(purpose: str, subjects: Sequence[tuple[str, Configuration]]) -> dict[str, Any]:
    """The question for a round."""
    return {"what": "round", "purpose": purpose, "subjects": [[name, each.to_dict()] for name, each in subjects]}


def _until(within: Within) -> float:
    """When it is to be over; asked for when it begins, which is when the journal has no answer."""
    return time.monotonic() + within()


def _run(
    module: str,
    request: Mapping[str, Any],
    limit: float | None,
    until: float,
    handlers: Mapping[str, Handler] | None = None,
) -> Any:
    """The answer of a process, which is ended if it takes longer than it may, or the time is over."""
    left = until - time.monotonic()
    if left <= 0:
        raise NoTimeError
    timeout = min(left, inf if limit is None else limit)
    try:
        return run_child(module, request, timeout=None if timeout == inf else timeout, handlers=handlers)
    except FailedError:
        if time.monotonic() >= until:
            raise NoTimeError from None
        raise
