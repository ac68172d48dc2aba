"""The offload benchmark: one model, several placements, each measured in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any, SupportsIndex

from moebind._core import checks
from moebind.backend.devices import Device
from moebind.bench import environment
from moebind.bench.agreement import Agreement, agreement, read_captured
from moebind.bench.measure import Captured
from moebind.bench.output import Output
from moebind.bench.placements import Placement, checked
from moebind.bench.progress import Progress
from moebind.bench.protocol import run_child
from moebind.bench.record import Measurement, Record
from moebind.bench.report import OffloadReport
from moebind.bench.resident_memory import seen_from_outside
from moebind.bench.rows import OffloadRow, read_row
from moebind.bench.settings import OTHER_NAMES, Settings, checked_context, checked_devices, checked_prompts
from moebind.bench.texts import AGREEMENT
from moebind.files.download import local_file
from moebind.files.gguf import Gguf
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ContextParams

__all__ = ["offload"]

#: The name of measurements in the record: a placement is known by what is asked of it, whatever it is called.
_PLACEMENT = "placement"
#: Parts of a report's conditions that the measuring process tells.
_OF_THE_PROCESS = ("machine", "model")


@explained_with_fields(context="offload(model_path, context_params={})", other_names=OTHER_NAMES)
def offload(
    model_path: str | os.PathLike[str],
    placements: Sequence[Placement | str] | None = None,
    *,
    context_params: ContextParams | None = None,
    repeats: SupportsIndex = 3,
    warmup: SupportsIndex = 1,
    n_prompt: SupportsIndex = 512,
    n_generate: SupportsIndex = 128,
    prompts: Sequence[str] | None = None,
    devices: Sequence[Device | str] | None = None,
    worker_threads: SupportsIndex = 1,
    output: str | os.PathLike[str] | None = None,
    progress: Callable[[float], bool | None] | bool = True,
    timeout: float | None = None,
    command: str | None = None,
) -> OffloadReport:
    """Measure what placements of a model take and how fast they are, and whether they compute the same.

    Each placement is loaded in a process of its own, one after the other. After ``warmup`` runs that are not counted,
    each of ``repeats`` runs clears the cache, computes a prompt of ``n_prompt`` tokens of text, and then ``n_generate``
    tokens one at a time, greedily; tokens that end a text do not end it. Every token gets a stamp of the clock.
    Then ``prompts`` are computed, with their logits, and continued. A process that dies, or raises, becomes a row that
    says why; the others go on.

    Parameters
    ----------
    model_path
        The model's file, or the first one of a split model; or the address of one on the Hugging Face Hub, which is
        downloaded unless it is in the cache.
    placements
        What to compare: :class:`Placement` objects, or texts as :meth:`Placement.parse` reads them. The first is what
        others are compared with. None: :func:`default_placements`.
    context_params
        The context of all of them, threads included. None: 4096 tokens, the rest as llama.cpp has it.
    repeats
        Runs of each placement, at least 3: fewer have no standard deviation worth telling.
    warmup
        Runs before that.
    n_prompt, n_generate
        Tokens of a run.
    prompts
        Texts on which logits are compared. None: eight short ones, of prose, code, numbers and more.
    devices
        Where "the device" is: a :class:`moebind.Device`, its name, ``"loopback"`` or the size of one, such as
        ``"24GiB"``, for a worker process on this machine, or ``"HOST:PORT"`` for an RPC server's devices. None: this
        machine's GPUs.
    worker_threads
        Threads of loopback workers.
    output
        A folder, or a path that ends in ``.json`` (other files then go to a folder ``NAME.files`` beside it). The
        report is written there after each placement, and a placement that is there already, with the same file,
        parameters, devices, settings, build and machine, is not measured again. Logits are kept there, at most 64 MiB
        per placement. None: nothing is kept.
    progress
        True: a bar, if tqdm is installed and standard error is a terminal, and otherwise lines on standard error: what
        is done with each placement, and what was found. Or what is called with a fraction from 0.0 to 1.0; returning
        False stops.
    timeout
        Seconds that one placement may take; None: as long as it needs.
    command
        What is recorded as the command that makes the report again; None: this call.

    Returns
    -------
    OffloadReport

    Raises
    ------
    ModelNotFoundError, ModelLoadError
        If the file is missing or no model. What goes wrong with a single placement is in its row.
    MoebindError
        If the progress callback stopped it. What was finished is in ``output``.
    ValueError, TypeError
        If an argument is out of range, there is no device, or parameters hold callbacks, which cannot go to another
        process.
    OSError
        If ``output`` cannot be written.
    KeyboardInterrupt
        After Ctrl-C. The text says what is kept.

    Examples
    --------
    >>> report = moebind.bench.offload("moe.gguf", ["all", "cpu-moe"], output="results")
    >>> print(report.to_markdown())
    """
    path = checks.path("model_path", model_path)
    header = Gguf.from_file(path)
    chosen = checked(placements, path)
    settings = Settings(
        context=checked_context(context_params, header),
        repeats=checks.integer("repeats", repeats, 3, 10_000),
        warmup=checks.integer("warmup", warmup, 0, 10_000),
        n_prompt=checks.integer("n_prompt", n_prompt, 1),
        n_generate=checks.integer("n_generate", n_generate, 1),
        prompts=checked_prompts(prompts),
        devices=checked_devices(devices, checks.integer("worker_threads", worker_threads, 1, checks.THREADS_MAX)),
        timeout=None if timeout is None else checks.number("timeout", timeout, 0.001),
    )
    room = settings.context.n_ctx // (1 if settings.context.kv_unified else settings.context.n_seq_max)
    if settings.n_prompt + settings.n_generate > -(-room // 256) * 256:
        raise ValueError(
            f"n_prompt and n_generate are {settings.n_prompt} and {settings.n_generate} tokens, and a sequence has "
            f"room for {room}: make n_ctx larger"
        )
    file = local_file(path)  # only now, when nothing else is wrong
    requests = [_request(file, each, settings) for each in chosen]
    if command is None:
        command = _call(path, placements, output, context_params, devices, settings)
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(progress, len(chosen) * settings.steps, settings.step_name))
        kept = Output.of(output, stack)
        files = environment.checksums(Gguf.from_file(file).paths, kept.checksums, bar.aside)
        comparison = _Comparison(files, settings, kept, checks.text("command", command).decode())
        try:
            return comparison.run(chosen, requests, bar)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(comparison.interrupted(len(chosen), output)) from None


def _with_cache(context: dict[str, Any], size: int | str | None) -> dict[str, Any]:
    """The context of a placement: the one of all, with a cache of experts if it has one of its own."""
    return context if size is None else {**context, "moe_cache_size": size}


def _request(path: str, placement: Placement, settings: Settings) -> dict[str, Any]:
    """The request to a child, without where its logits go."""
    if placement.model_params.progress_callback is not None:
        raise ValueError("progress_callback is set: the benchmark says how far it is by itself; leave it out")
    return {
        "path": os.path.abspath(path),
        "model_params": placement.model_params.to_dict(),
        "memory": placement.memory,
        "context_params": _with_cache(settings.context_record(), placement.moe_cache),
        "devices": list(settings.devices),
        "n_prompt": settings.n_prompt,
        "n_generate": settings.n_generate,
        "warmup": settings.warmup,
        "repeats": settings.repeats,
        "prompts": list(settings.prompts),
    }


def _call(
    path: str,
    placements: Sequence[Placement | str] | None,
    output: str | os.PathLike[str] | None,
    context: ContextParams | None,
    devices: Sequence[Device | str] | None,
    settings: Settings,
) -> str:
    """A call of ``offload`` with what differs from its defaults."""
    usual: dict[str, object] = {"repeats": 3, "warmup": 1, "n_prompt": 512, "n_generate": 128}
    arguments = [repr(path)]
    if placements is not None:
        arguments.append(repr(list(placements)))
    if context is not None:
        arguments.append(f"context_params={context!r}")
    arguments += [
        f"{name}={getattr(settings, name)!r}" for name, value in usual.items() if getattr(settings, name) != value
    ]
    if settings.prompts != AGREEMENT:
        arguments.append("prompts=[...]")
    if devices is not None:
        arguments.append(f"devices={[each.name if isinstance(each, Device) else each for each in devices]!r}")
    threads = {each["n_threads"] for each in settings.devices if each["kind"] == "loopback"} - {1}
    arguments += [f"worker_threads={each}" for each in threads]
    if output is not None:
        arguments.append(f"output={os.fspath(output)!r}")
    return f"moebind.bench.offload({', '.join(arguments)})"


class _Comparison:
    """One call: the rows so far, and how they agree with the first."""

    def __init__(self, files: list[dict[str, Any]], settings: Settings, output: Output, command: str) -> None:
        self._settings = settings
        self._output = output
        build = environment.build()
        self._environment: dict[str, Any] = {
            "date": environment.now(),
            "command": command,
            "files": files,
            "build": build,
            "load_average": list(os.getloadavg()),
        }
        machine = [environment.processor(), *environment.installed(), environment.driver()]
        hashes = [each["sha256"] for each in files]
        self._record = Record(output.folder, {"files": hashes, "build": build, "machine": machine})
        self._rows: list[OffloadRow] = []
        self._first: Captured | None = None
        self._agreements: dict[str, Agreement] = {}

    def run(self, placements: Sequence[Placement], requests: Sequence[dict[str, Any]], bar: Progress) -> OffloadReport:
        """All of them; what is finished is on the disk before the next begins."""
        report = self._report()
        for at, (placement, request) in enumerate(zip(placements, requests, strict=True)):
            bar.begin(placement.name, at + 1, len(placements), at * self._settings.steps)
            # A file is known by its checksum, wherever it lies.
            conditions = {name: value for name, value in request.items() if name != "path"}
            found = self._record.find(_PLACEMENT, conditions)
            row = None if found is None else self._known(placement.name, found)
            known = row is not None
            if row is None:
                bar.measures()
                measured = self._record.measure(
                    _PLACEMENT, partial(self._measure, request, conditions, bar), conditions
                )
                row = self._row(placement.name, measured)
            self._rows.append(row)
            report = self._report()
            self._output.write(report)
            bar.finished(row, known=known)
        bar.at(len(placements) * self._settings.steps)
        return report

    def interrupted(self, count: int, output: str | os.PathLike[str] | None) -> str:
        """The words for a benchmark that Ctrl-C ended: what is kept of it, and how it goes on."""
        if output is None:
            return "interrupted: nothing is kept without an output (--output FOLDER on the command line)"
        done = sum(row.ok for row in self._rows)
        verb = "is" if done == 1 else "are"
        return f"interrupted: {done} of {count} placements {verb} in {os.fspath(output)}; the same command goes on"

    def _known(self, name: str, measurement: Measurement) -> OffloadRow | None:
        """The row of what was measured before; None if it failed, or if there is not all of it."""
        try:
            row = self._row(name, measurement)
        except ValueError:  # of another version, or changed by hand
            return None
        return row if row.ok and read_captured(self._output.logits(row.key)) is not None else None

    def _measure(self, request: Mapping[str, Any], conditions: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
        """Have a child measure a placement, and look at its memory from outside."""
        views: dict[str, Any] = {}

        def look(pid: int, content: Mapping[str, Any]) -> None:
            views[content["moment"]] = asdict(seen_from_outside(pid, content))
            views["nvml"] = content["reason"]

        found = run_child(
            "moebind.bench.placement_process",
            {**request, "logits": self._output.logits(self._record.identity(_PLACEMENT, conditions))},
            timeout=self._settings.timeout,
            handlers={"step": lambda pid, content: bar.step(), "look": look},
        )
        # It is the process that knows the machine's memory and the model.
        self._environment.update({name: found[name] for name in _OF_THE_PROCESS})
        row = {**found["row"], **views, "agreement": None, "load_average": self._environment["load_average"][0]}
        return {**found, "row": row}

    def _row(self, name: str, measurement: Measurement) -> OffloadRow:
        """A measurement as a row.

        Raises
        ------
        ValueError
            If it is no measurement of a placement.
        """
        request, failure = measurement.request, measurement.failure
        key = self._record.identity(_PLACEMENT, request)
        if failure is not None:
            parameters: Any = {each: request[each] for each in ("model_params", "context_params")}
            load = self._environment["load_average"][0]
            return OffloadRow(name, failure, measurement.date, key, **parameters, load_average=load)
        try:
            found = measurement.result
            row = read_row({**found["row"], "name": name, "failure": None, "date": measurement.date, "key": key})
            self._environment = {**{each: found[each] for each in _OF_THE_PROCESS}, **self._environment}
        except (KeyError, TypeError) as error:
            raise ValueError(f"it lacks {error}") from error
        return row

    def _report(self) -> OffloadReport:
        """A report of the rows so far, with what can be compared compared."""
        measured = [row for row in self._rows if row.ok]
        if measured and self._first is None:
            self._first = read_captured(self._output.logits(measured[0].key))
        for row in measured:
            other = None if row.key in self._agreements else read_captured(self._output.logits(row.key))
            if self._first is not None and other is not None:
                self._agreements[row.key] = agreement(self._first, other)
        rows = tuple(replace(row, agreement=self._agreements.get(row.key)) for row in self._rows)
        reference = measured[0].name if measured else None
        return OffloadReport(rows, reference, self._settings.record(), dict(self._environment))
