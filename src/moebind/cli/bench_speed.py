"""``moebind bench decode``, ``prompt`` and ``batch``: tokens in a second."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from moebind.bench.speed import SpeedReport, batch, decode, prompt
from moebind.cli import options as o
from moebind.cli.devices import DevicesHere
from moebind.cli.given import RPC, Given, takes
from moebind.cli.loading import computing
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS, without
from moebind.params.params import ContextParams, ModelParams

__all__ = ["batch_command", "decode_command", "prompt_command"]

Repeats: TypeAlias = Annotated[int, typer.Option("--repeats", "-r", metavar="N", help="Runs that count, at least 3.")]
Warmup: TypeAlias = Annotated[int, typer.Option("--warmup", metavar="N", help="Runs before that.")]
PromptTokens: TypeAlias = Annotated[int, typer.Option("--n-prompt", "-p", metavar="N", help="Tokens of the prompt.")]
Generated: TypeAlias = Annotated[
    int, typer.Option("--n-gen", "-n", metavar="N", help="Tokens that are computed one at a time.")
]
Sequences: TypeAlias = Annotated[
    str, typer.Option("--sequences", "-npl", metavar="N,N", help="How many side by side; a row for each.")
]
Quiet: TypeAlias = Annotated[bool, typer.Option("--no-progress", help="Draw no bar, and write no lines.")]
#: What the help says of the length of context.
ENOUGH = "enough"


@takes_model
@takes(PARAMS, RPC, *MODEL, *CONTEXT, n_ctx=ENOUGH)
def decode_command(
    model: o.ModelPath,
    given: Given,
    device: DevicesHere = None,
    n_prompt: PromptTokens = 128,
    n_generate: Generated = 128,
    repeats: Repeats = 5,
    warmup: Warmup = 1,
    as_json: o.AsJson = False,
    no_progress: Quiet = False,
) -> None:
    """Measure how fast single tokens are computed, one after the other.

    Example: moebind bench decode moe.gguf --cpu-moe -n 64
    """
    path, params, context = _chosen(model, given, device, n_prompt + n_generate)
    counts = {"n_prompt": n_prompt, "n_generate": n_generate, "repeats": repeats, "warmup": warmup}
    _told(decode(path, params, context, **counts, progress=not no_progress), as_json)


@takes_model
@takes(PARAMS, RPC, *MODEL, *CONTEXT, n_ctx=ENOUGH)
def prompt_command(
    model: o.ModelPath,
    given: Given,
    device: DevicesHere = None,
    n_prompt: PromptTokens = 512,
    repeats: Repeats = 5,
    warmup: Warmup = 1,
    as_json: o.AsJson = False,
    no_progress: Quiet = False,
) -> None:
    """Measure how fast prompts are computed.

    Example: moebind bench prompt moe.gguf --cpu-moe -p 2048
    """
    path, params, context = _chosen(model, given, device, n_prompt)
    counts = {"n_prompt": n_prompt, "repeats": repeats, "warmup": warmup}
    _told(prompt(path, params, context, **counts, progress=not no_progress), as_json)


@takes_model
@takes(PARAMS, RPC, *MODEL, *without(CONTEXT, "n_seq_max"), n_ctx=f"{ENOUGH}; for each sequence")
def batch_command(
    model: o.ModelPath,
    given: Given,
    device: DevicesHere = None,
    sequences: Sequences = "1,2,4,8",
    n_prompt: PromptTokens = 128,
    n_generate: Generated = 32,
    repeats: Repeats = 5,
    warmup: Warmup = 1,
    as_json: o.AsJson = False,
    no_progress: Quiet = False,
) -> None:
    """Measure how fast several sequences are computed side by side, one token of each at a time.

    Example: moebind bench batch moe.gguf --cpu-moe -npl 1,4,16
    """
    try:
        sizes = [int(each) for each in sequences.split(",")]
    except ValueError:
        raise ValueError(f"--sequences is {sequences!r}; it takes numbers with commas between them, as 1,4") from None
    path, params, context = _chosen(model, given, device, n_prompt + n_generate)
    counts = {"n_prompt": n_prompt, "n_generate": n_generate, "repeats": repeats, "warmup": warmup}
    _told(batch(path, params, context, n_sequences=sizes, **counts, progress=not no_progress), as_json)


def _chosen(
    model: str, given: Given, device: list[str] | None, n_tokens: int
) -> tuple[str, ModelParams, ContextParams]:
    """The model, and the parameters."""
    params, context = computing(model, given, device, max(n_tokens, 1))
    return model, params, context


def _told(report: SpeedReport, as_json: bool) -> None:
    if as_json:
        show_json(report.to_dict())
    else:
        show(report)
