"""Speeds of one placement: single tokens, prompts, and batches of several sequences."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import SupportsIndex

from moebind._core import checks
from moebind._core.pictures import html_of
from moebind._core.shown import shown
from moebind._core.sizes import show_size
from moebind._core.tables import Column, text_table
from moebind.bench import environment
from moebind.bench.measure import TimedRun, check_room, prompt_text, timed_batch, timed_run
from moebind.bench.progress import Progress
from moebind.bench.rows import Samples
from moebind.bench.settings import OTHER_NAMES
from moebind.bench.texts import TEXT
from moebind.context.context import Context
from moebind.files.download import local_file
from moebind.model.model import Model
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ContextParams, ModelParams

__all__ = ["SpeedReport", "SpeedRow", "batch", "decode", "prompt"]

#: llama.cpp's cache has room for multiples of so many tokens.
_PADDING = 256
_Progress = Callable[[float], bool | None] | bool


@dataclass(frozen=True)
class SpeedRow:
    """The runs of one measurement, with the same counts of tokens.

    Attributes
    ----------
    n_prompt, n_generate, n_sequences : int
        Tokens of each prompt, tokens computed one at a time after each, and how many sequences side by side.
    runs : tuple[TimedRun, ...]
        Each run that counts, with all its stamps.
    memory : Mapping[str, int]
        Bytes that the model and the context hold on each device, and on the host.
    """

    n_prompt: int
    n_generate: int
    n_sequences: int
    runs: tuple[TimedRun, ...]
    memory: Mapping[str, int] = field(default_factory=dict)

    @property
    def prompt(self) -> Samples:
        """Tokens per second of the prompts, of all sequences together."""
        return Samples(tuple(run.prompt_speed for run in self.runs))

    @property
    def decode(self) -> Samples | None:
        """Tokens per second, of all sequences together, one of each at a time; None if there are no such tokens."""
        return Samples(tuple(run.decode_speed for run in self.runs)) if self.n_generate else None


@dataclass(frozen=True)
class SpeedReport:
    """The result of :func:`decode`, :func:`prompt` or :func:`batch`. Printing it gives a table.

    Attributes
    ----------
    kind : str
        Which of them.
    rows : tuple[SpeedRow, ...]
        One for each number of sequences.
    model_params, context_params : Mapping[str, object]
        Parameters that differ from their defaults, and threads.
    environment : Mapping[str, object]
        File, model, build, machine, date and load average.
    """

    kind: str
    rows: tuple[SpeedRow, ...]
    model_params: Mapping[str, object]
    context_params: Mapping[str, object]
    environment: Mapping[str, object]

    def to_dict(self) -> dict[str, object]:
        """All of it as plain values, for JSON: sizes are bytes, times seconds, speeds tokens per second."""
        return {
            "kind": self.kind,
            "model_params": dict(self.model_params),
            "context_params": dict(self.context_params),
            "environment": dict(self.environment),
            "rows": [
                {
                    "n_prompt": row.n_prompt,
                    "n_generate": row.n_generate,
                    "n_sequences": row.n_sequences,
                    "prompt": _figures(row.prompt),
                    "decode": None if row.decode is None else _figures(row.decode),
                    "memory": dict(row.memory),
                    "runs": [asdict(run) for run in row.runs],
                }
                for row in self.rows
            ],
        }

    def __str__(self) -> str:
        columns = [Column("sequences"), Column("prompt"), Column("generated")]
        columns += [] if self.kind == "decode" else [Column("prompt tokens/s")]
        columns += [] if self.kind == "prompt" else [Column("decode tokens/s"), Column("ms per step", ".2f")]
        rows: list[list[object]] = []
        for row in self.rows:
            cells: list[object] = [row.n_sequences, row.n_prompt, row.n_generate]
            if self.kind != "decode":
                cells.append(str(row.prompt))
            if row.decode is not None:
                cells += [str(row.decode), 1000 * row.n_sequences / row.decode.mean]
            rows.append(cells)
        held = ", ".join(f"{name} {show_size(size)}" for name, size in self.rows[-1].memory.items())
        threads = self.context_params["n_threads"]
        computed = f"{threads} thread{'s' * (threads != 1)}, {self.context_params['n_threads_batch']} for prompts"
        runs = len(self.rows[0].runs)
        return "\n".join(
            [
                f"{self.environment['model']}; {computed}",
                *text_table(columns, rows),
                f"Means and standard deviations of {runs} runs. It held {held}.",
            ]
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the table."""
        return html_of(str(self))


@explained_with_fields(
    model="decode(model_path, {})", context="decode(model_path, context_params={})", other_names=OTHER_NAMES
)
def decode(
    model_path: str | os.PathLike[str],
    model_params: ModelParams | None = None,
    context_params: ContextParams | None = None,
    *,
    n_prompt: SupportsIndex = 128,
    n_generate: SupportsIndex = 128,
    repeats: SupportsIndex = 5,
    warmup: SupportsIndex = 1,
    progress: Callable[[float], bool | None] | bool = True,
) -> SpeedReport:
    """Measure how fast single tokens are computed, one after the other.

    Each run clears the cache, computes a prompt of text, and then tokens one at a time, greedily; those that end a text
    do not end it. Tokens are counted as the tokenizer makes them, and each has a stamp of the clock.

    Parameters
    ----------
    model_path, model_params, context_params
        The model, how it is loaded, and the context; without ``n_ctx``, one that has room.
    n_prompt, n_generate
        Tokens of the prompt, which are in the cache then, and tokens after it.
    repeats, warmup
        Runs that count, at least 3, and runs before that.
    progress
        As for :func:`offload`.

    Returns
    -------
    SpeedReport

    Raises
    ------
    ModelNotFoundError, ModelLoadError, ContextCreationError
        As for :meth:`moebind.Model.load_from_file` and :meth:`moebind.Model.new_context`.
    MoebindError
        If the model does not continue texts, the context is too short, or the progress callback stopped it.
    ValueError, TypeError
        If an argument is out of range.

    Examples
    --------
    >>> report = moebind.bench.decode("moe.gguf", ModelParams().with_cpu_moe_all())
    >>> report.rows[0].decode.mean
    """
    counts = _counts(n_prompt, n_generate, repeats, warmup)
    return _measure("decode", model_path, model_params, context_params, counts, (1,), progress)


@explained_with_fields(
    model="prompt(model_path, {})", context="prompt(model_path, context_params={})", other_names=OTHER_NAMES
)
def prompt(
    model_path: str | os.PathLike[str],
    model_params: ModelParams | None = None,
    context_params: ContextParams | None = None,
    *,
    n_prompt: SupportsIndex = 512,
    repeats: SupportsIndex = 5,
    warmup: SupportsIndex = 1,
    progress: Callable[[float], bool | None] | bool = True,
) -> SpeedReport:
    """Measure how fast prompts are computed.

    Parameters
    ----------
    model_path, model_params, context_params, n_prompt, repeats, warmup, progress
        As for :func:`decode`.

    Returns
    -------
    SpeedReport

    Raises
    ------
    ModelNotFoundError, ModelLoadError, ContextCreationError, MoebindError, ValueError, TypeError
        As for :func:`decode`.

    Examples
    --------
    >>> moebind.bench.prompt("moe.gguf", n_prompt=2048).rows[0].prompt.mean
    """
    counts = replace(_counts(n_prompt, 1, repeats, warmup), n_generate=0)
    return _measure("prompt", model_path, model_params, context_params, counts, (1,), progress)


@explained_with_fields(
    model="batch(model_path, {})", context="batch(model_path, context_params={})", other_names=OTHER_NAMES
)
def batch(
    model_path: str | os.PathLike[str],
    model_params: ModelParams | None = None,
    context_params: ContextParams | None = None,
    *,
    n_sequences: Sequence[SupportsIndex] = (1, 2, 4, 8),
    n_prompt: SupportsIndex = 128,
    n_generate: SupportsIndex = 32,
    repeats: SupportsIndex = 5,
    warmup: SupportsIndex = 1,
    progress: Callable[[float], bool | None] | bool = True,
) -> SpeedReport:
    """Measure how fast several sequences are computed side by side, one token of each at a time.

    Each sequence has a prompt of its own, so that a model's routers send their tokens to different experts.

    Parameters
    ----------
    model_path, model_params, context_params, n_prompt, n_generate, repeats, warmup, progress
        As for :func:`decode`. ``n_ctx`` is what one sequence has room for; ``n_seq_max`` follows ``n_sequences``.
    n_sequences
        How many sequences, for each row.

    Returns
    -------
    SpeedReport
        Speeds are of all sequences together.

    Raises
    ------
    ModelNotFoundError, ModelLoadError, ContextCreationError, MoebindError, ValueError, TypeError
        As for :func:`decode`.

    Examples
    --------
    >>> print(moebind.bench.batch("moe.gguf", n_sequences=[1, 4]))
    """
    if isinstance(n_sequences, (str, bytes)) or not isinstance(n_sequences, Sequence):
        raise TypeError(f"n_sequences is {shown(n_sequences)}; it takes a list of numbers, such as [1, 2, 4]")
    sizes = tuple(checks.integer(f"n_sequences[{at}]", each, 1, 256) for at, each in enumerate(n_sequences))
    if not sizes:
        raise ValueError("n_sequences is empty; it takes at least one number")
    counts = _counts(n_prompt, n_generate, repeats, warmup)
    return _measure("batch", model_path, model_params, context_params, counts, sizes, progress)


@dataclass(frozen=True)
class _Counts:
    n_prompt: int
    n_generate: int
    repeats: int
    warmup: int


def _counts(
    n_prompt: SupportsIndex, n_generate: SupportsIndex, repeats: SupportsIndex, warmup: SupportsIndex
) -> _Counts:
    return _Counts(
        checks.integer("n_prompt", n_prompt, 1),
        checks.integer("n_generate", n_generate, 1),
        checks.integer("repeats", repeats, 3, 10_000),
        checks.integer("warmup", warmup, 0, 10_000),
    )


def _measure(
    kind: str,
    model_path: str | os.PathLike[str],
    model_params: ModelParams | None,
    context_params: ContextParams | None,
    counts: _Counts,
    n_sequences: Sequence[int],
    progress: _Progress,
) -> SpeedReport:
    path = checks.path("model_path", model_path)
    params = ModelParams() if model_params is None else model_params
    wanted = ContextParams(n_ctx=_room(counts)) if context_params is None else context_params
    for name, value, needed in (("model_params", params, ModelParams), ("context_params", wanted, ContextParams)):
        if not isinstance(value, needed):
            raise TypeError(f"{name} is {shown(value)}; it takes {needed.__name__}")
    if wanted.embeddings:
        raise ValueError("context_params has embeddings: such a context has no logits")
    path = local_file(path)
    parts = counts.warmup + counts.repeats
    rows = []
    with (
        Progress(progress, 1 + len(n_sequences) * parts, lambda at: f"run {at + 1} of {parts}") as bar,
        Model.load_from_file(path, params) as model,
    ):
        bar.step()
        text = prompt_text(model, TEXT, counts.n_prompt * max(n_sequences))
        for at, number in enumerate(n_sequences):
            bar.begin(f"{number} sequence{'s' * (number != 1)}", at + 1, len(n_sequences), 1 + at * parts)
            with model.new_context(_of_several(wanted, number)) as context:
                check_room(model, context, counts.n_prompt + counts.n_generate)
                runs = _runs(kind, model, context, text, counts, number, bar)
                memory = {each.name: each.total for each in context.memory_breakdown().devices}
            rows.append(SpeedRow(counts.n_prompt, counts.n_generate, number, runs, memory))
        about = {
            "model": model._title,
            "file": {"name": os.path.basename(path), "size": model.size},
            "n_params": model.n_params,
            "devices": [device.name for device in model.devices],
            "build": environment.build(),
            "machine": environment.machine_record(),
            "date": environment.now(),
            "load_average": list(os.getloadavg()),
        }
    threads = {"n_threads": wanted.n_threads, "n_threads_batch": wanted.n_threads_batch}
    return SpeedReport(kind, tuple(rows), params.to_dict(), {**wanted.to_dict(), **threads}, about)


def _room(counts: _Counts) -> int:
    return -(-(counts.n_prompt + counts.n_generate) // _PADDING) * _PADDING


def _of_several(params: ContextParams, number: int) -> ContextParams:
    """The context for so many sequences, each with the room that one has."""
    return params if number == 1 else params.with_n_seq_max(number).with_n_ctx(params.n_ctx * number)


def _runs(
    kind: str, model: Model, context: Context, text: str, counts: _Counts, number: int, bar: Progress
) -> tuple[TimedRun, ...]:
    found: list[TimedRun] = []
    for at in range(counts.warmup + counts.repeats):
        bar.measures()
        run = (
            timed_batch(model, context, text, counts.n_prompt, counts.n_generate, number)
            if kind == "batch"
            else timed_run(model, context, text, counts.n_prompt, counts.n_generate)
        )
        if at >= counts.warmup:
            found.append(run)
        bar.step()
    return tuple(found)


def _figures(samples: Samples) -> dict[str, object]:
    return {"mean": samples.mean, "std": samples.std, "values": list(samples.values)}
