"""``moebind bench``: measurements."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from moebind.bench.placements import Placement, default_placements
from moebind.bench.runs import offload
from moebind.cli import bench_speed
from moebind.cli import options as o
from moebind.cli.devices import checked_size
from moebind.cli.given import RPC_ELSEWHERE, Given, takes
from moebind.cli.model_argument import takes_model
from moebind.cli.output import say, show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS, without
from moebind.cli.signatures import HelpAll, completed
from moebind.cli.values import OwnCommand
from moebind.params.params import N_CTX
from moebind.placement.described_devices import is_description

app = typer.Typer(
    help="Measure what placements take, and how fast models are.\n\n"
    "Example: moebind bench offload moe.gguf --device loopback",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Placements = Annotated[
    list[str] | None,
    typer.Option(
        "--placement",
        metavar="PLACEMENT",
        help="all, cpu-moe, n-cpu-moe=N, n-gpu-layers=N, none, ot=PATTERN=TARGET, moe-cache=SIZE or fit=SIZE; several "
        "times for several.",
        show_default="all, half of the layers, cpu-moe; with --params, what the file has",
    ),
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        "-dev",
        metavar="DEVICE",
        help="A GPU's name; loopback, or a size, for a worker process on this machine; HOST:PORT for an RPC server.",
        show_default="this machine's GPUs",
    ),
]


#: A placement says where experts are.
_PARAMETERS = (PARAMS, RPC_ELSEWHERE, *without(MODEL, "cpu_moe", "n_cpu_moe"), *CONTEXT)


@app.callback()
def _options(help_all: HelpAll = False) -> None:
    pass


app.command("decode", cls=OwnCommand)(completed(bench_speed.decode_command))
app.command("prompt", cls=OwnCommand)(completed(bench_speed.prompt_command))
app.command("batch", cls=OwnCommand)(completed(bench_speed.batch_command))


@app.command("offload", cls=OwnCommand)
@completed
@takes_model
@takes(
    *_PARAMETERS,
    hidden={option.name for option in _PARAMETERS} - {"params", "n_gpu_layers", "n_ctx", "threads"},
    own_hidden={"warmup", "prompt", "worker_threads", "timeout", "no_progress"},
    n_ctx=str(N_CTX),
)
def command(
    model: o.ModelPath,
    given: Given,
    placement: Placements = None,
    device: Devices = None,
    repeats: Annotated[int, typer.Option("--repeats", "-r", metavar="N", help="Runs that count, at least 3.")] = 3,
    warmup: Annotated[int, typer.Option("--warmup", metavar="N", help="Runs before that.")] = 1,
    n_prompt: Annotated[int, typer.Option("--n-prompt", "-p", metavar="N", help="Tokens of the prompt.")] = 512,
    n_generate: Annotated[
        int, typer.Option("--n-gen", "-n", metavar="N", help="Tokens that are computed one at a time.")
    ] = 128,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="A text on which logits are compared; several times for several.",
            show_default="eight short ones",
        ),
    ] = None,
    worker_threads: Annotated[
        int, typer.Option("--worker-threads", metavar="N", help="Threads of loopback workers.")
    ] = 1,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="What one placement may take.", show_default="no end"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FOLDER",
            help="A folder, or a .json file, for the report; what is there already is not measured again.",
            show_default=False,
        ),
    ] = None,
    as_json: o.AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write Markdown.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it into a file, as well.", show_default=False)
    ] = None,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="Draw no bar, and write no lines.")] = False,
) -> None:
    """Measure memory and speed of placements, each in a process of its own, and whether they compute the same.

    Ends with 1 if one of them failed; the others are measured all the same.

    Example: moebind bench offload moe.gguf --device loopback --placement all --placement cpu-moe
    """
    if as_json and markdown:
        raise ValueError("--json and --markdown are given; choose one")
    picture = o.plot_path(plot, "reports")
    read = given.read(model, given.measuring(device), n_ctx=N_CTX)
    for each in read.device or ():
        if is_description(each):
            checked_size(each)
    if placement:
        chosen = [Placement.parse(each, read.model_params) for each in placement]
    elif given.values["params"] is not None:
        chosen = [Placement(f"as {Path(given.values['params']).name} has it", read.model_params)]
    else:
        chosen = list(default_placements(model, read.model_params))
    try:
        report = offload(
            model,
            chosen,
            context_params=read.context_params,
            repeats=repeats,
            warmup=warmup,
            n_prompt=n_prompt,
            n_generate=n_generate,
            prompts=prompt or None,
            devices=read.device,
            worker_threads=worker_threads,
            output=output,
            progress=not no_progress,
            timeout=timeout,
            command=shlex.join(["moebind", *sys.argv[1:]]),
        )
    except KeyboardInterrupt as stopped:  # typer would end with the same, and say nothing
        say(str(stopped) or "interrupted")
        raise typer.Exit(130) from None
    if as_json:
        show_json(report.to_dict())
    else:
        show(report.to_markdown() if markdown else report)
    if picture is not None and any(row.ok for row in report):
        report.plot(picture)
    if not report.ok:
        raise typer.Exit(1)
