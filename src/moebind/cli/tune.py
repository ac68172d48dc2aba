"""``moebind tune``: the parameters that are fastest on this machine, by measuring."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from moebind._core.atomic_files import write_whole
from moebind.cli import options as o
from moebind.cli.budgets import Memory, budgets
from moebind.cli.given import RPC_ELSEWHERE, Given, takes
from moebind.cli.model_argument import takes_model
from moebind.cli.output import say, show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS, without
from moebind.cli.written_options import as_options
from moebind.params.params import N_CTX
from moebind.tuning.tune import tune

Goal = Annotated[
    str,
    typer.Option("--goal", metavar="GOAL", help="chat, long-prompt or batch; or decode=0.5,prompt=0.5 (weights)."),
]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", metavar="N", help="What it may take.", show_default="as long as it needs"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the same command was stopped.")]
Only = Annotated[
    str | None,
    typer.Option(
        "--only", metavar="WHAT,WHAT", help="What may be changed, such as placement,threads.", show_default="all of it"
    ),
]
KvTypes = Annotated[bool, typer.Option("--kv-types", help="Try types of the cache, too; they change results.")]
Draft = Annotated[
    str | None,
    typer.Option("--model-draft", "-md", metavar="FILE", help="A model that may draft for it.", show_default=False),
]
Save = Annotated[
    Path | None,
    typer.Option("--save", metavar="FILE", help="Keep it in a file, too, for --params.", show_default=False),
]
Preset = Annotated[
    Path | None,
    typer.Option("--preset", metavar="FILE", help="Write it as llama-server's preset.", show_default=False),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw what each step gave.", show_default=False)
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        "-dev",
        metavar="DEVICE",
        help="A GPU; loopback, or a size, for a worker here; HOST:PORT; or none.",
        show_default="all GPUs",
    ),
]
PromptTokens = Annotated[
    int | None,
    typer.Option("--n-prompt", "-p", metavar="N", help="Tokens of prompts.", show_default="the goal's"),
]
Generated = Annotated[
    int | None,
    typer.Option("--n-gen", "-n", metavar="N", help="Tokens after them.", show_default="the goal's"),
]
Sequences = Annotated[
    int | None, typer.Option("--sequences", metavar="N", help="Side by side, for batch.", hidden=True)
]
Journal = Annotated[
    Path | None, typer.Option("--journal", metavar="FILE", help="Where measurements are kept.", hidden=True)
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", help="What one trial may take.", hidden=True)
]
Quiet = Annotated[bool, typer.Option("--no-progress", help="Write no lines on the way.")]

#: What a result tells Python's users to give, and the options for it.
_CALLS = [
    (re.compile(r"\bminutes=(\d+)"), r"--minutes \1"),
    (re.compile(r"\bn_prompt=(\d+) and n_generate=(\d+)"), r"-p \1 -n \2"),
    (re.compile(r"\bdimensions=\[\.\.\.\]"), "--only WHAT,WHAT"),
    (re.compile(r"\bresume=True\b"), "--resume"),
]
_OPTIONS = (PARAMS, RPC_ELSEWHERE, *MODEL, *without(CONTEXT, "n_seq_max"))
#: What is decided already can be said with any of them, and seldom is.
_RARE = {option.name for option in _OPTIONS} - {"params", "n_ctx", "n_cpu_moe", "cpu_moe", "threads"}


@takes_model
@takes(*_OPTIONS, hidden=_RARE, n_ctx=str(N_CTX))
def command(
    model: o.ModelPath,
    given: Given,
    goal: Goal = "chat",
    minutes: Minutes = None,
    resume: Resume = False,
    memory: Memory = None,
    device: Devices = None,
    only: Only = None,
    kv_types: KvTypes = False,
    draft: Draft = None,
    n_prompt: PromptTokens = None,
    n_generate: Generated = None,
    n_sequences: Sequences = None,
    timeout: Timeout = None,
    journal: Journal = None,
    save: Save = None,
    preset: Preset = None,
    plot: Plot = None,
    as_json: o.AsJson = False,
    no_progress: Quiet = False,
) -> None:
    """Measure, and find the parameters that are fastest here. With --tuned, other commands use them.

    Example: moebind tune moe.gguf --goal chat --minutes 20
    """
    picture = o.plot_path(plot, "results")
    chosen = given.read(model, given.measuring(device), n_ctx=N_CTX)
    chosen.check_moe_cache(chosen.context_params.moe_cache_size)
    try:
        found = tune(
            model,
            goal=_weights(goal),
            minutes=minutes,
            memory=budgets(memory),
            model_params=chosen.model_params,
            context_params=chosen.context_params,
            devices=chosen.device,
            dimensions=None if only is None else [each.strip() for each in only.split(",")],
            kv_types=kv_types,
            draft=draft,
            n_prompt=n_prompt,
            n_generate=n_generate,
            n_sequences=n_sequences,
            timeout=timeout,
            resume=resume,
            journal=journal,
            progress=not no_progress,
            command=shlex.join(["moebind", *sys.argv[1:]]),
        )
    except KeyboardInterrupt as stopped:  # typer would end with the same, and say nothing
        say(_in_options(str(stopped)) or "interrupted")
        raise typer.Exit(130) from None
    # The result names no workers, which other processes call otherwise.
    workers = given.workers()
    options = as_options(found.model_params, found.context_params, None if workers else chosen.device)
    options = [*(["--rpc", ",".join(workers)] if workers else []), *options]
    drafts = [] if found.speculation is None else found.speculation.options
    if save is not None:
        found.save(save)
    if as_json:
        show_json({**found.to_dict(), "options": options, "drafts": drafts})
    else:
        show(_in_options(str(found)))
        show(f"In Python: {found.model_params}, {found.context_params}")
        show(f"Options of moebind: {shlex.join(options)}")
        if drafts:
            show(f"And of those that write text: {shlex.join(drafts)}")
    if preset is not None:
        write_whole(os.fspath(preset), [found.preset().encode()])
    if picture is not None:
        if any(step.gain is not None for step in found.steps):
            found.plot(picture)
        else:
            say(f"{picture} is not written: nothing was measured that it would show")


def _in_options(said: str) -> str:
    for written, option in _CALLS:
        said = written.sub(option, said)
    return o.calls_as_options(said)


def _weights(given: str) -> str | dict[str, float]:
    """A goal by its name, or weights."""
    if "=" not in given:
        return given
    pairs = [each.partition("=") for each in given.split(",")]
    names = [name.strip() for name, _, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--goal is {given!r}, which has {name} twice; it takes one weight for each")
    try:
        weights = {name: float(value) for name, (_, _, value) in zip(names, pairs, strict=True)}
    except ValueError:
        raise ValueError(f"--goal is {given!r}; it takes weights such as decode=0.5,prompt=0.5") from None
    for name, value in weights.items():
        if not (0 <= value < math.inf):
            raise ValueError(f"--goal has {name}={value:g}; it takes weights of 0 or more, such as {name}=0.5")
    return weights
