"""The result of a search: the parameters, how they are written elsewhere, and what each step gave."""

from __future__ import annotations

import json
import os
import pprint
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from moebind._core import checks
from moebind._core.atomic_files import read_whole
from moebind._core.pictures import html_of
from moebind.bench.agreement import Agreement
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.plot import check_plot
from moebind.placement.saved import Identity, Saved, write
from moebind.tuning.configuration import Configuration, Process
from moebind.tuning.goals import Goal
from moebind.tuning.plot import plot_steps
from moebind.tuning.report import Findings, explained, table
from moebind.tuning.search import Step
from moebind.tuning.speculation import Speculation
from moebind.tuning.trials import Trial

__all__ = ["KEY", "Tuning", "read_fields"]

#: Under which a file has what a saved fit has not.
KEY = "tuning"


@dataclass(frozen=True)
class Tuning(Findings):
    """What :func:`moebind.tune` found. Printing it gives the table of its steps and the parameters.

    Attributes
    ----------
    path : str
        The model.
    goal : Goal
        What was to be fast: its name, the weights of its parts, and the tokens of the runs.
    model_params : ModelParams
        For :meth:`Model.load_from_file`.
    context_params : ContextParams
        For :meth:`Model.new_context`.
    process : Process
        What is set for the whole process before it loads anything: ``environment``, ``cpus``, ``numa``;
        :meth:`apply` sets it. Empty in most cases.
    start : Configuration
        The defaults, with which the search began.
    steps : tuple[Step, ...]
        What came of each dimension, in order.
    total : Step or None
        What was kept against the defaults, in rounds of its own; None if nothing was kept.
    trials : tuple[Trial, ...]
        Every measurement, also those that failed.
    agreements : Mapping[str, Agreement]
        For each change that was fast enough, how its results agree with those of the defaults.
    conditions : Mapping[str, object]
        Machine, build, devices, date, load and command.
    complete : bool
        Whether there was time for all of it.
    needs : float or None
        Seconds that a single comparison takes, if there was less time than that.
    speculation : Speculation or None
        What drafts tokens: its ``kind``, the ``draft``'s file, and ``n_max``; its ``opened(context)`` is a context
        manager that gives the :class:`Speculative` for ``Context.generate``. None: nothing does.
    """

    path: str
    model_params: ModelParams
    context_params: ContextParams
    conditions: Mapping[str, Any]
    _identity: Identity | None = field(default=None, repr=False)

    @property
    def explanation(self) -> str:
        """What was found, in sentences."""
        return explained(self)

    @property
    def options(self) -> list[str]:
        """Options of ``moebind plan``, ``bench``, ``generate`` and others; needs the extra ``cli``.

        What drafts is left out: ``speculation`` has its own ``options``, for commands that write text. What is set
        for the process has none: ``--tuned`` sets it, or the environment and ``taskset`` do.
        """
        from moebind.cli.written_options import as_options  # typer, which few programs need

        return as_options(self.model_params, self.context_params)

    @property
    def python(self) -> str:
        """Lines of Python that load the model with these parameters."""
        lines = [f"os.environ[{name!r}] = {value!r}" for name, value in self.process.environment.items()]
        if self.process.cpus is not None:
            lines.append(f"os.sched_setaffinity(0, {sorted(self.process.cpus)!r})")
        imports = ["import os", ""] if lines else []
        if self.process.numa != Process().numa:
            lines.append(f"moebind.init(moebind.NumaStrategy.{self.process.numa})")
        # The length of the context, too, where it is the default: it was chosen.
        contexts = {"n_ctx": self.context_params.n_ctx, **self.context_params.to_dict()}
        for name, kind, fields in (
            ("model_params", "ModelParams", self.model_params.to_dict()),
            ("context_params", "ContextParams", contexts),
        ):
            lines.append(f"{name} = {kind}.from_dict({pprint.pformat(fields, sort_dicts=False, width=100)})")
        lines.append(f"model = Model.load_from_file({self.path!r}, model_params)")
        lines.append("context = model.new_context(context_params)")
        if self.speculation is not None:
            lines += self.speculation.python
        if self.speculation is not None or self.process.numa != Process().numa:
            imports.append("import moebind")
        return "\n".join([*imports, "from moebind import ContextParams, Model, ModelParams", "", *lines])

    def preset(self, name: str | None = None) -> str:
        """A section of a file of presets, as llama-server takes it: ``--models-preset``.

        What is set for the whole process has no options there, and workers have other names in each process: a comment
        says so.

        Parameters
        ----------
        name
            What the model is called there; None: as its file.

        Raises
        ------
        ValueError
            If llama-server has no option for a parameter.
        """
        from moebind.backend.devices import default_devices
        from moebind.server.arguments import Devices, settings
        from moebind.server.presets import presets

        used = default_devices() if self.model_params.devices is None else self.model_params.devices
        called = (
            os.path.basename(self.path).removesuffix(".gguf") if name is None else checks.text("name", name).decode()
        )
        # llama-server loads the layers that predict further ahead for the kind of drafts that they are.
        options = settings(self.model_params.with_load_mtp(False), self.context_params, Devices.of(used))
        if self._workers:
            del options["device"]
        drafts = {} if self.speculation is None else self.speculation.settings
        written = presets({called: {"model": os.path.abspath(self.path), **options, **drafts}})
        return written + "".join(f"; {line}\n" for line in [*self._of_workers(), *self._of_the_process()])

    @property
    def _workers(self) -> list[str]:
        """What it was measured with, if other processes call that otherwise: all else is in the parameters."""
        return list(self.conditions.get("devices") or ()) if self.model_params.devices is None else []

    def _of_workers(self) -> Iterator[str]:
        if self._workers:
            yield f"Measured with {', '.join(self._workers)}. To compute there, add rpc = HOST:PORT and device = RPC0"

    def _of_the_process(self) -> Iterator[str]:
        process = self.process
        if process:
            yield "For the whole of llama-server, which options of a model do not set:"
        for name, value in process.environment.items():
            yield f"{name}={value} in its environment"
        if process.cpus is not None:
            yield f"taskset -c {','.join(map(str, process.cpus))} before the command"
        if process.numa != Process().numa:
            yield f"--numa {process.numa.lower()} among its arguments"

    def apply(self) -> None:
        """Set for this process what is set for a whole one; before anything is loaded.

        Raises
        ------
        MoebindError
            If llama.cpp is initialised already, and a NUMA strategy was found.
        """
        self.process.apply()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw what each step gave, with its interval; the extra ``plot`` is needed.

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            If the file's ending is unknown, or nothing was measured.
        OSError
            If it cannot be written.
        """
        target = checks.path("path", path)
        check_plot("path", target, "results")
        plot_steps([*self.steps, *([] if self.total is None else [self.total])], target)

    def __str__(self) -> str:
        return "\n".join([*table(self), self.explanation])

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture, and the table."""
        return html_of(str(self), draw=self.plot)

    def to_dict(self) -> dict[str, object]:
        """All of it as plain values, for JSON: what :meth:`save` writes.

        It has what a saved :class:`Fit` has, so that ``--params`` takes it, and the rest under ``"tuning"``.
        """
        saved = Saved(
            self.model_params,
            self.context_params,
            os.path.abspath(self.path),
            self._identity,
            explanation=self.explanation,
        )
        return {
            **saved.to_dict(),
            KEY: {
                "goal": asdict(self.goal),
                "process": self.process.to_dict(),
                "start": self.start.to_dict(),
                "steps": [asdict(step) for step in self.steps],
                "total": None if self.total is None else asdict(self.total),
                "trials": [{**asdict(each), "configuration": each.configuration.to_dict()} for each in self.trials],
                "agreements": {name: asdict(each) for name, each in self.agreements.items()},
                "conditions": dict(self.conditions),
                "complete": self.complete,
                "needs": self.needs,
                "speculation": None if self.speculation is None else self.speculation.to_dict(),
            },
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it into a file, which :meth:`load` and the commands (``--params``) read.

        Raises
        ------
        ValueError
            If a model is there.
        OSError
            If it cannot be written.
        """
        write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tuning:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ValueError
            If the file is no result of a search, or is damaged.
        OSError
            If it cannot be read.
        """
        name = checks.path("path", path)
        saved, fields = Saved.read(name), read_fields(name)
        if fields is None:
            raise ValueError(f"{name} holds parameters, but no result of moebind.tune; Fit.load reads a fit")
        try:
            return cls(
                Goal(**fields["goal"]),
                Process.from_dict(fields["process"]),
                Configuration.from_dict(fields["start"]),
                tuple(map(_step, fields["steps"])),
                None if fields["total"] is None else _step(fields["total"]),
                tuple(map(_trial, fields["trials"])),
                {name: Agreement(**each) for name, each in fields["agreements"].items()},
                bool(fields["complete"]),
                fields.get("needs"),
                None if fields.get("speculation") is None else Speculation.from_dict(fields["speculation"]),
                saved.path,
                saved.model_params,
                saved.context_params,
                fields["conditions"],
                saved.identity,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{name} is damaged: {error}") from error


def read_fields(path: str) -> dict[str, Any] | None:
    """What a file has of a search; None if it has nothing of it.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is not JSON.
    """
    found = json.loads(read_whole(path))
    fields = found.get(KEY) if isinstance(found, dict) else None
    return fields if isinstance(fields, dict) else None


def _step(fields: Mapping[str, Any]) -> Step:
    return Step(**{**fields, "differences": tuple(fields["differences"])})


def _trial(fields: Mapping[str, Any]) -> Trial:
    return Trial(**{**fields, "configuration": Configuration.from_dict(fields["configuration"])})
