"""The offload benchmark: one model, several placements, each measured in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

from moebind._core import checks
from moebind._core.atomic_files import write_whole
from moebind._core.native import decoded, lib
from moebind._core.sizes import parse_size
from moebind.backend.devices import Device, capacities
from moebind.backend.loopback import worker_pids
from moebind.bench import environment
from moebind.bench.agreement import Agreement, agreement, read_captured
from moebind.bench.measure import Captured
from moebind.bench.placements import Placement, checked
from moebind.bench.processes import FailedError, measure
from moebind.bench.progress import Progress
from moebind.bench.report import REPORT, OffloadReport, OffloadRow, make_row
from moebind.bench.texts import AGREEMENT
from moebind.enums import DeviceType
from moebind.files.gguf import Gguf
from moebind.params import serialize
from moebind.params.params import ContextParams

__all__ = ["offload"]

#: Tokens of context, if nothing is said: as in the published table.
N_CTX = 4096


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
        The model's file, or the first one of a split model; or the address of one on the Hugging Face Hub that was
        downloaded already.
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
        True: a bar, if tqdm is installed and standard error is a terminal, and otherwise a line on standard error for
        each placement that is finished. Or what is called with a fraction from 0.0 to 1.0; returning False stops.
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
    >>> report = moebind.bench.offload("moe.gguf", ["all", "cpu-moe"], devices=["loopback"], output="results")
    >>> print(report.to_markdown())
    """
    path = checks.path("model_path", model_path)
    header = Gguf.from_file(path)
    if checks.on_hub(path):
        path = header.paths[0]  # in the Hub's cache, if it was downloaded
        if not os.path.isfile(path):
            raise ValueError(f"model_path is {path!r}, which is not downloaded: Model.from_pretrained does that")
    chosen = checked(placements, path)
    settings = Settings(
        context=_context(context_params, header),
        repeats=checks.integer("repeats", repeats, 3, 10_000),
        warmup=checks.integer("warmup", warmup, 0, 10_000),
        n_prompt=checks.integer("n_prompt", n_prompt, 1),
        n_generate=checks.integer("n_generate", n_generate, 1),
        prompts=_prompts(prompts),
        devices=_devices(devices, checks.integer("worker_threads", worker_threads, 1, checks.THREADS_MAX)),
        timeout=None if timeout is None else checks.number("timeout", timeout, 0.001),
    )
    room = settings.context.n_ctx // (1 if settings.context.kv_unified else settings.context.n_seq_max)
    if settings.n_prompt + settings.n_generate > -(-room // 256) * 256:
        raise ValueError(
            f"n_prompt and n_generate are {settings.n_prompt} and {settings.n_generate} tokens, and a sequence has "
            f"room for {room}: make n_ctx larger"
        )
    requests = [_request(path, each, settings) for each in chosen]
    if command is None:
        command = _call(path, placements, output, context_params, devices, settings)
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(progress, len(chosen) * settings.steps))
        place = _Place.of(output, stack)
        files = environment.checksums(header.paths, place.cache, bar.aside)
        work = _Work(files, settings, place, checks.text("command", command).decode())
        try:
            return work.run(chosen, requests, bar)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(work.interrupted(len(chosen), output)) from None


@dataclass(frozen=True)
class Settings:
    """What is the same for all placements."""

    context: ContextParams
    repeats: int
    warmup: int
    n_prompt: int
    n_generate: int
    prompts: tuple[str, ...]
    devices: tuple[dict[str, Any], ...]
    timeout: float | None

    @property
    def steps(self) -> int:
        """Parts of the work on one placement."""
        return 1 + self.warmup + self.repeats + len(self.prompts)

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "context_params": {
                **serialize.carried(self.context),
                "n_threads": self.context.n_threads,
                "n_threads_batch": self.context.n_threads_batch,
                "n_ubatch": self.context.n_ubatch,
            },
            "repeats": self.repeats,
            "warmup": self.warmup,
            "n_prompt": self.n_prompt,
            "n_generate": self.n_generate,
            "prompts": list(self.prompts),
            "devices": list(self.devices),
        }


def _context(params: ContextParams | None, header: Gguf) -> ContextParams:
    if params is None:
        return ContextParams(n_ctx=N_CTX)
    if not isinstance(params, ContextParams):
        raise TypeError(f"context_params is {params!r}; it takes ContextParams")
    if params.embeddings:
        raise ValueError("context_params has embeddings: such a context has no logits")
    if params.n_ctx:
        return params
    trained = header.get(f"{header.get('general.architecture', '')}.context_length", N_CTX)
    return params.with_n_ctx(int(trained) if isinstance(trained, int) else N_CTX)


def _prompts(prompts: Sequence[str] | None) -> tuple[str, ...]:
    if prompts is None:
        return AGREEMENT
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts is {prompts!r}; it takes a list of texts")
    for at, each in enumerate(prompts):
        if not checks.utf8(f"prompts[{at}]", each):
            raise ValueError(f"prompts[{at}] is empty")
    if not prompts:
        raise ValueError("prompts is empty; it takes at least one text, or None")
    return tuple(prompts)


def _devices(devices: Sequence[Device | str] | None, n_threads: int) -> tuple[dict[str, Any], ...]:
    """What a child opens; nothing is asked of a device here, since that would take memory on it."""
    gpus = [decoded(lib.ggml_backend_dev_name(native)) for native in environment.local_gpus()]
    if devices is None:
        if not gpus:
            raise ValueError(
                "this machine has no GPU, or the build has no backend for it (moebind.doctor() says why): "
                "devices=['loopback'], on the command line --device loopback, takes a worker process for one"
            )
        return tuple({"kind": "local", "name": name} for name in gpus)
    if isinstance(devices, (str, Device)) or not isinstance(devices, Sequence):
        raise TypeError(f"devices is {devices!r}; it takes a list, such as ['loopback']")
    if not devices:
        raise ValueError("devices is empty; it takes at least one, or None for this machine's GPUs")
    return tuple(_device(at, each, n_threads, gpus) for at, each in enumerate(devices))


def _device(at: int, given: Device | str, n_threads: int, gpus: Sequence[str]) -> dict[str, Any]:
    if isinstance(given, Device):
        if given.name in worker_pids:  # one like it: it serves one process at a time, and that is this one
            return {"kind": "loopback", "memory": capacities.get(given.name), "n_threads": n_threads}
        if given.backend == "RPC":
            raise ValueError(
                f"devices[{at}] is the RPC server {given.description}, which serves one process at a time: "
                "remove_rpc_server it here, and give its address as a text"
            )
        if given.type == DeviceType.CPU:
            raise ValueError(f"devices[{at}] is the CPU, which takes what the others do not")
        return {"kind": "local", "name": given.name}
    text = checks.text(f"devices[{at}]", given).decode()
    if text == "loopback":
        return {"kind": "loopback", "memory": None, "n_threads": n_threads}
    if text in gpus:
        return {"kind": "local", "name": text}
    host, colon, port = text.rpartition(":")
    if colon and host and port.isdecimal():
        return {"kind": "server", "endpoint": text}
    try:
        size = parse_size(f"devices[{at}]", text, low=1)
    except ValueError:
        raise ValueError(
            f"devices[{at}] is {text!r}; it takes 'loopback', a size such as '24GiB', 'HOST:PORT', or the name of a "
            f"device: {', '.join(gpus) or 'this machine has none'}"
        ) from None
    return {"kind": "loopback", "memory": size, "n_threads": n_threads}


def _request(path: str, placement: Placement, settings: Settings) -> dict[str, Any]:
    """What a child is asked, without where its logits go."""
    threads = {"n_threads": settings.context.n_threads, "n_threads_batch": settings.context.n_threads_batch}
    return {
        "path": os.path.abspath(path),
        "model_params": serialize.carried(placement.model_params),
        "memory": placement.memory,
        "context_params": {**serialize.carried(settings.context), **threads},
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
    told = [repr(path)]
    if placements is not None:
        told.append(repr(list(placements)))
    if context is not None:
        told.append(f"context_params={context!r}")
    told += [f"{name}={getattr(settings, name)!r}" for name, value in usual.items() if getattr(settings, name) != value]
    if settings.prompts != AGREEMENT:
        told.append("prompts=[...]")
    if devices is not None:
        told.append(f"devices={[each.name if isinstance(each, Device) else each for each in devices]!r}")
    threads = {each["n_threads"] for each in settings.devices if each["kind"] == "loopback"} - {1}
    told += [f"worker_threads={each}" for each in threads]
    if output is not None:
        told.append(f"output={os.fspath(output)!r}")
    return f"moebind.bench.offload({', '.join(told)})"


class _Place:
    """Where a report and what goes with it are kept."""

    def __init__(self, report: str | None, folder: str) -> None:
        self.report = report
        self.folder = folder
        self.cache = None if report is None else os.path.join(folder, "checksums.json")

    @classmethod
    def of(cls, output: str | os.PathLike[str] | None, stack: ExitStack) -> _Place:
        """The folder is made if it is not there; without an output, it is gone afterwards."""
        if output is None:
            return cls(None, stack.enter_context(tempfile.TemporaryDirectory(prefix="moebind-bench-")))
        path = checks.path("output", output)
        if path.endswith(".json") and not os.path.isdir(path):
            place = cls(path, f"{path[:-5]}.files")
        else:
            place = cls(os.path.join(path, REPORT), path)
        if os.path.exists(path) and not (path.endswith(".json") or os.path.isdir(path)):
            raise ValueError(f"output is {path!r}, which is a file; it takes a folder, or a path that ends in .json")
        if place.report is not None and os.path.exists(place.report):
            OffloadReport.load(place.report)  # whatever is no report is refused rather than written over
        os.makedirs(place.folder, exist_ok=True)
        return place

    def logits(self, key: str) -> str:
        """The file for a placement's logits."""
        return os.path.join(self.folder, f"logits-{key[:16]}.npz")

    def row(self, key: str) -> str:
        """The file for what was measured of a placement."""
        return os.path.join(self.folder, f"placement-{key[:16]}.json")

    def known(self, key: str) -> OffloadReport | None:
        """What was measured of a placement, as a report of its own; None if there is not all of it."""
        try:
            found = OffloadReport.load(self.row(key))
        except (OSError, ValueError):
            return None
        whole = [row.key for row in found if row.ok] == [key] and read_captured(self.logits(key)) is not None
        return found if whole else None

    def write(self, path: str | None, report: OffloadReport) -> None:
        """Write a report, whole or not at all."""
        if self.report is not None and path is not None:
            write_whole(path, [json.dumps(report.to_dict(), indent=1, allow_nan=False).encode()])


class _Work:
    """What was measured so far."""

    def __init__(self, files: list[dict[str, Any]], settings: Settings, place: _Place, command: str) -> None:
        self._settings = settings
        self._place = place
        self._build = environment.build()
        self._environment: dict[str, Any] = {
            "date": environment.now(),
            "command": command,
            "files": files,
            "build": self._build,
            "load_average": list(os.getloadavg()),
        }
        self._machine = [environment.processor(), *environment.installed(), environment.driver()]
        self._rows: list[OffloadRow] = []
        self._first: Captured | None = None
        self._agreements: dict[str, Agreement] = {}

    def run(self, placements: Sequence[Placement], requests: Sequence[dict[str, Any]], bar: Progress) -> OffloadReport:
        """All of them; what is finished is on the disk before the next begins."""
        report = self._report()
        for at, (placement, request) in enumerate(zip(placements, requests, strict=True)):
            bar.begin(placement.name, at * self._settings.steps)
            key = self._key(request)
            known = self._place.known(key)
            if known is None:
                row = self._measured(placement.name, key, request, bar)
            else:
                row = replace(known.rows[0], name=placement.name)
                if row.load_average is None:  # of a version that told it of the whole report only
                    row = replace(row, load_average=_first(known.environment.get("load_average")))
                found = {name: known.environment.get(name) for name in ("machine", "model")}
                self._environment = {**found, **self._environment}
            self._rows.append(row)
            report = self._report()
            if known is None and row.ok:
                self._place.write(self._place.row(key), replace(report, rows=(row,), reference=row.name))
            self._place.write(self._place.report, report)
            bar.finished(row, at + 1, len(placements), known=known is not None)
        bar.at(len(placements) * self._settings.steps)
        return report

    def interrupted(self, asked: int, output: str | os.PathLike[str] | None) -> str:
        """What is kept of a benchmark that Ctrl-C ended, and how it goes on."""
        if output is None:
            return "interrupted: nothing is kept without an output (--output FOLDER on the command line)"
        done = sum(row.ok for row in self._rows)
        verb = "is" if done == 1 else "are"
        return f"interrupted: {done} of {asked} placements {verb} in {os.fspath(output)}; the same command goes on"

    def _key(self, request: Mapping[str, Any]) -> str:
        same = {name: value for name, value in request.items() if name != "path"}
        hashes = [each["sha256"] for each in self._environment["files"]]
        told = json.dumps([hashes, same, self._build, self._machine], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def _measured(self, name: str, key: str, request: dict[str, Any], bar: Progress) -> OffloadRow:
        date, load = environment.now(), _first(self._environment["load_average"])
        asked = {**request, "logits": os.path.abspath(self._place.logits(key))}
        try:
            found = measure(asked, self._settings.timeout, bar.step)
        except FailedError as failed:
            asked_for = (request["model_params"], request["context_params"])
            return OffloadRow(name, str(failed), date, key, *asked_for, load_average=load)
        self._environment["machine"], self._environment["model"] = found["machine"], found["model"]
        told = {"name": name, "failure": None, "date": date, "key": key, "load_average": load, "nvml": found["nvml"]}
        return make_row({**found["row"], **told}, found["before"], found["held"])

    def _report(self) -> OffloadReport:
        """What there is so far, with what can be compared compared."""
        measured = [row for row in self._rows if row.ok]
        if measured and self._first is None:
            self._first = read_captured(self._place.logits(measured[0].key))
        for row in measured:
            other = None if row.key in self._agreements else read_captured(self._place.logits(row.key))
            if self._first is not None and other is not None:
                self._agreements[row.key] = agreement(self._first, other)
        rows = tuple(replace(row, agreement=self._agreements.get(row.key)) for row in self._rows)
        reference = measured[0].name if measured else None
        return OffloadReport(rows, reference, self._settings.record(), dict(self._environment))


def _first(load_average: Any) -> float | None:
    """That of the last minute."""
    return float(load_average[0]) if load_average else None
