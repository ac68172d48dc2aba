"""``moebind cache``: how often a cache of experts on a device would hit, for every size of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moebind.cli import options as o
from moebind.cli.devices import DevicesHere
from moebind.cli.given import Given, takes
from moebind.cli.loading import load
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS, without
from moebind.params.params import N_CTX

PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."

Prompt = Annotated[
    str | None,
    typer.Option("--prompt", "-p", metavar="TEXT", help="What the model goes on from.", show_default="a short story"),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="A text that is computed token by token, as if the model had written it, in place of a prompt.",
        show_default=False,
    ),
]
Predict = Annotated[
    int, typer.Option("--predict", "-n", metavar="N", min=1, help="Tokens that it writes, or computes.")
]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="SIZE", help="A size of the cache; can be given several times.", show_default=False),
]
Save = Annotated[
    Path | None,
    typer.Option(
        "--save",
        metavar="FILE",
        help="Keep what the routers chose, for moebind fit --moe-cache auto --routing FILE.",
        show_default=False,
    ),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw it into a file, as well.", show_default=False)
]


@takes_model
@takes(PARAMS, *MODEL, *without(CONTEXT, "moe_cache"), n_ctx=str(N_CTX))
def command(
    model: o.ModelPath,
    given: Given,
    device: DevicesHere = None,
    prompt: Prompt = None,
    file: File = None,
    predict: Predict = 128,
    size: Sizes = None,
    save: Save = None,
    as_json: o.AsJson = False,
    plot: Plot = None,
) -> None:
    """Forecast the hit rate of a cache of experts, by its size. Loads the model, and computes a text; needs no GPU.

    Example: moebind cache moe.gguf --predict 256
    """
    from moebind.placement.routing import RoutingRecorder

    if prompt is not None and file is not None:
        raise ValueError("--prompt and --file are both given: leave one of them out")
    picture = o.plot_path(plot, "curves")
    text = None if file is None else file.read_text(encoding="utf-8")
    recorder = RoutingRecorder(order=True)
    loaded, context_params = load(model, given, device)
    with loaded, loaded.new_context(context_params.with_eval_callback(recorder)) as context:
        if not loaded.n_expert:
            raise ValueError(f"{model} has no experts: there is nothing to cache")
        if text is None:
            for _ in context.generate(PROMPT if prompt is None else prompt, max_tokens=predict):
                pass
        else:
            from moebind.context.batch import Batch

            for token in loaded.str_to_token(text)[: min(predict, context.n_ctx_seq)].tolist():
                context.decode(Batch.get_one([token]))
    if save is not None:
        recorder.save(save)
    curve = recorder.cache_curve(size or None)
    if as_json:
        show_json({"path": model, **curve.to_dict()})
    else:
        show(curve)
    if picture is not None:
        curve.plot(picture)
