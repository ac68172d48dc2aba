"""``moebind.tune``: the parameters that are fastest on this machine, found by measuring."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, SupportsIndex

from moebind._core import checks
from moebind._core.shown import shown
from moebind._core.sizes import parse_memory
from moebind.backend.devices import Device, local_gpus
from moebind.bench import environment
from moebind.bench.record import FailedError
from moebind.bench.settings import checked_context, checked_devices, checked_prompts
from moebind.errors import FitError, MoebindError
from moebind.files.download import local_file
from moebind.files.gguf import Gguf
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.header import read_header
from moebind.placement.saved import Identity
from moebind.tuning import saved
from moebind.tuning.configuration import Configuration
from moebind.tuning.dimensions import ASKED, DIMENSIONS
from moebind.tuning.goals import Goal, checked_goal
from moebind.tuning.journal import Journal
from moebind.tuning.machine import conditions
from moebind.tuning.progress import Progress
from moebind.tuning.result import Tuning
from moebind.tuning.search import Found, search
from moebind.tuning.trials import KL_MAX, Trials

__all__ = ["tune"]


@explained_with_fields(
    model="tune(path, model_params={})",
    context="tune(path, context_params={})",
    other_names={"only": "dimensions", "n_gen": "n_generate"},
)
def tune(
    path: str | os.PathLike[str],
    *,
    goal: str | Mapping[str, float] = "chat",
    minutes: float | None = None,
    memory: SupportsIndex | str | Mapping[str, SupportsIndex | str] | None = None,
    model_params: ModelParams | None = None,
    context_params: ContextParams | None = None,
    devices: Sequence[Device | str] | None = None,
    dimensions: Sequence[str] | None = None,
    kv_types: bool = False,
    draft: str | os.PathLike[str] | None = None,
    n_prompt: SupportsIndex | None = None,
    n_generate: SupportsIndex | None = None,
    n_sequences: SupportsIndex | None = None,
    prompts: Sequence[str] | None = None,
    kl_max: float = KL_MAX,
    worker_threads: SupportsIndex = 1,
    timeout: float | None = None,
    resume: bool = False,
    journal: str | os.PathLike[str] | None = None,
    save: bool = True,
    progress: Callable[[float], bool | None] | bool = True,
    command: str | None = None,
) -> Tuning:
    """Measure on this machine, and find the parameters with which a model is fastest.

    The search begins with the defaults, as :func:`fit` places them, and changes one thing after the other: placement,
    size of micro-batches with a new placement for each, cache of experts, threads, and more. Measurements are made in
    processes of their own, in rounds in which the best so far is measured, too. A change is kept only if it is faster
    beyond the noise, by a sign test, and computes the same; in the end all of it is measured against the defaults.

    Parameters
    ----------
    path
        The model's file, or the first one of a split model; or the address of one on the Hugging Face Hub that was
        downloaded already.
    goal
        What is to be fast: ``"chat"`` (single tokens first, with prompts of 256), ``"long-prompt"`` (prompts of 2048
        tokens), ``"batch"`` (eight sequences side by side); or weights, such as ``{"decode": 0.5, "prompt": 0.5}``.
    minutes
        What it may take; None: as long as it needs. Part of the time is kept for the last comparison. If there is not
        enough for a single choice, that is known after two measurements, and is said.
    memory
        What devices and host may take, as for :func:`fit`: it is never exceeded.
    model_params, context_params
        What is decided already: fields that are not the default are kept as they are. With several sequences, ``n_ctx``
        is what each has room for. Without, 4096 tokens.
    devices
        As for :func:`moebind.bench.offload`; without any, or with ``[]``, the processor alone.
    dimensions
        Names of what may be changed, in the order in which it is tried. None: all of them.
    kv_types
        Whether other types of the KV cache are tried, too: they change results a little.
    draft
        The file of a model that may draft for it. N-grams, and the model's own layers for multi-token prediction, are
        tried without being given.
    n_prompt, n_generate, n_sequences
        Tokens of the runs, and sequences side by side, instead of the goal's.
    prompts
        Texts on which results are compared, and which are continued where drafts are measured: how much these gain
        depends on the text. None: those of :func:`moebind.bench.offload`.
    kl_max
        The mean divergence from the defaults, in nats, beyond which a change is not kept.
    worker_threads
        Threads of loopback workers.
    timeout
        Seconds that one measurement may take; None: ten times what the first one took, and two minutes.
    resume
        Go on where a search with the same arguments was stopped.
    journal
        The file in which every measurement is kept; None: one in the user's cache folder (without ``save``, none).
    save
        Whether the result is kept in the user's cache folder, where ``--tuned`` of the commands looks for it.
    progress
        True: lines on standard error. Or what is called with a fraction from 0.0 to 1.0; returning False stops.
    command
        What is recorded as the command that makes the result again; None: nothing.

    Returns
    -------
    Tuning

    Raises
    ------
    FitError
        If the defaults do not fit into the memory.
    ModelNotFoundError, ModelLoadError
        If the file is missing or no model. A trial that fails is in ``trials``.
    MoebindError
        If the defaults cannot be measured, the progress callback stopped it, or another search writes the journal.
    ValueError, TypeError
        If an argument is out of range, or the journal is of another search.
    KeyboardInterrupt
        After Ctrl-C. The text says where the journal is.

    Examples
    --------
    >>> found = moebind.tune("moe.gguf", goal="chat", minutes=20)
    >>> print(found)
    >>> model = Model.load_from_file("moe.gguf", found.model_params)
    """
    asked = _checked(path, goal, memory, model_params, context_params, devices, dimensions, kv_types=kv_types,
                     draft=draft, n_prompt=n_prompt, n_generate=n_generate, n_sequences=n_sequences, prompts=prompts,
                     worker_threads=worker_threads)  # fmt: skip
    seconds = float("inf") if minutes is None else 60 * checks.number("minutes", minutes, 0.0)
    limit = None if timeout is None else checks.number("timeout", timeout, 0.001)
    most = checks.number("kl_max", kl_max, 0.0)
    kept = checks.boolean("save", save)
    again = checks.boolean("resume", resume)
    machine = conditions(asked.request["devices"])
    identity = Identity.of(read_header(asked.path))
    target = saved.place(identity, machine)
    bar = Progress(progress, len(asked.dimensions), _clock(seconds))
    with tempfile.TemporaryDirectory(prefix="moebind-tune-") as scratch:
        if journal is not None:
            file = checks.path("journal", journal)
        elif kept:
            file = f"{target[:-5]}.journal"
        else:
            file = os.path.join(scratch, "journal")
        for each in (file, target) if kept else (file,):
            os.makedirs(os.path.dirname(os.path.abspath(each)), exist_ok=True)
        about = {"model": identity.header, "machine": machine, **asked.record()}
        written = Journal(file, about, resume=again)
        try:
            trials = Trials(
                asked.request,
                asked.goal,
                written,
                logits=scratch,
                prompts=asked.prompts,
                seconds=seconds,
                timeout=limit,
                told=bar.told,
                kl_max=most,
            )
            found = search(trials.start, asked.dimensions, trials)
        except FailedError as error:
            raise _failure(str(error)) from None
        except KeyboardInterrupt:
            told = (
                "nothing is kept"
                if file.startswith(scratch)
                else f"what was measured is in {file}: resume=True goes on"
            )
            raise KeyboardInterrupt(f"interrupted: {told}") from None
        finally:
            written.close()
    if not any(trial.failure is None for trial in trials.trials) and trials.trials:
        raise MoebindError(f"the defaults could not be measured: {trials.trials[0].failure}")
    result = _result(asked, found, trials, identity, machine, command)
    # Otherwise an earlier result says more, also one of another build.
    if kept and result.trials and result.decided:
        result.save(target)
    return result


@dataclass(frozen=True)
class _Asked:
    path: str
    goal: Goal
    dimensions: tuple[str, ...]
    prompts: tuple[str, ...]
    request: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """What makes it another search, if it differs; where the file lies does not."""
        given = {name: value for name, value in self.request.items() if name != "path"}
        goal = [self.goal.name, *map(str, _figures(self.goal))]
        return {"asked": given, "goal": goal, "dimensions": self.dimensions, "prompts": self.prompts}


def _figures(goal: Goal) -> list[object]:
    return [dict(goal.weights), goal.n_prompt, goal.n_generate, goal.n_sequences]


def _checked(
    path: str | os.PathLike[str],
    goal: str | Mapping[str, float],
    memory: SupportsIndex | str | Mapping[str, SupportsIndex | str] | None,
    model_params: ModelParams | None,
    context_params: ContextParams | None,
    devices: Sequence[Device | str] | None,
    dimensions: Sequence[str] | None,
    *,
    kv_types: bool,
    draft: str | os.PathLike[str] | None,
    n_prompt: SupportsIndex | None,
    n_generate: SupportsIndex | None,
    n_sequences: SupportsIndex | None,
    prompts: Sequence[str] | None,
    worker_threads: SupportsIndex,
) -> _Asked:
    file = checks.path("path", path)
    header = Gguf.from_file(file)
    wanted = checked_goal(goal, n_prompt, n_generate, n_sequences)
    model = ModelParams() if model_params is None else model_params
    if not isinstance(model, ModelParams):
        raise TypeError(f"model_params is {shown(model)}; it takes ModelParams")
    if model.vocab_only or model.no_alloc:
        raise ValueError("model_params has vocab_only or no_alloc: such a model cannot compute")
    if model.progress_callback is not None:
        raise ValueError("progress_callback is set: the search says how far it is by itself; leave it out")
    if model.devices is not None:
        raise ValueError("model_params has devices; give them as devices=[...], by name")
    context = checked_context(context_params, header)
    if context.n_ctx < wanted.n_tokens:
        raise ValueError(
            f"the goal's runs are of {wanted.n_tokens} tokens, and n_ctx is {context.n_ctx}: make n_ctx larger, or "
            "n_prompt smaller"
        )
    context = context.with_n_ctx(context.n_ctx * wanted.n_sequences)
    if wanted.n_sequences > 1:
        context = context.with_n_seq_max(wanted.n_sequences)
    threads = checks.integer("worker_threads", worker_threads, 1, checks.THREADS_MAX)
    none = (devices is None and not local_gpus()) or (devices is not None and not len(devices))
    used = () if none else checked_devices(devices, threads)
    if none:
        model = model.with_n_gpu_layers(0)
    size = memory if memory is None or isinstance(memory, Mapping) else parse_memory("memory", memory)
    chosen, texts = _dimensions(dimensions, kv_types=checks.boolean("kv_types", kv_types)), checked_prompts(prompts)
    drafts = None if draft is None else checks.path("draft", draft)
    if drafts is not None:
        if "speculation" not in chosen:
            raise ValueError("draft is given, and dimensions lacks 'speculation', which tries it: add that")
        Gguf.from_file(drafts)
    file = local_file(file)  # only now, when nothing else is wrong
    drafts = None if drafts is None else os.path.abspath(local_file(drafts))
    return _Asked(
        file,
        wanted,
        chosen,
        texts,
        {
            "path": os.path.abspath(file),
            "devices": list(used),
            "memory": dict(size) if isinstance(size, Mapping) else size,
            "given": Configuration.of(model, context).to_dict(),
            "draft": drafts,
            "given_fields": sorted(_changed(model_params) | _changed(context_params)),
        },
    )


def _changed(params: ModelParams | ContextParams | None) -> set[str]:
    """Names of fields that are not the default."""
    return (
        set()
        if params is None
        else {each.name for each in fields(params) if getattr(params, each.name) != each.default}
    )


def _dimensions(given: Sequence[str] | None, *, kv_types: bool) -> tuple[str, ...]:
    if given is None:
        return tuple(name for name in DIMENSIONS if kv_types or name not in ASKED)
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"dimensions is {shown(given)}; it takes a list, such as ['placement', 'threads']")
    for each in given:
        if each not in DIMENSIONS:
            raise ValueError(f"dimensions has {shown(each)}; it takes {', '.join(DIMENSIONS)}")
        if each in ASKED and not kv_types:
            raise ValueError(f"dimensions has {each!r}, which changes results: it takes kv_types=True besides")
    if not given or len(set(given)) != len(given):
        raise ValueError(f"dimensions is {shown(given)}; it takes at least one name, each once")
    return tuple(given)


def _clock(seconds: float) -> Callable[[], float]:
    begun = time.monotonic()
    return lambda: (time.monotonic() - begun) / seconds if seconds else 1.0


def _failure(reason: str) -> MoebindError:
    """What went wrong while it was planned, as it was raised there."""
    name, _, text = reason.partition(": ")
    return FitError(text) if name == "FitError" else MoebindError(reason)


def _result(
    asked: _Asked,
    found: Found[Configuration],
    trials: Trials,
    identity: Identity,
    machine: Mapping[str, Any],
    command: str | None,
) -> Tuning:
    best = found.best
    if any(each["kind"] != "local" for each in asked.request["devices"]):
        # Workers have other names in another process.
        best = best.with_model(ModelParams.from_dict({name: v for name, v in best.model.items() if name != "devices"}))
    about = {
        **machine,
        "machine": trials.began["machine"],
        "file": {"name": identity.name, "size": identity.size},
        "date": environment.now(),
        "load_average": list(os.getloadavg()),
        "command": command,
    }
    return Tuning(
        asked.goal,
        best.process,
        trials.start,
        found.steps,
        found.total,
        tuple(trials.trials),
        dict(trials.agreements),
        found.complete,
        found.needs,
        best.speculation,
        asked.request["path"],
        best.model_params,
        best.context_params,
        about,
        identity,
    )
