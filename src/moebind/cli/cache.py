"""``moebind cache``: how often a cache of experts on a device would hit, for every size of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moebind.cli import options as o
from moebind.cli.devices import DevicesHere
from moebind.cli.given import RPC, Given, takes
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS, without
from moebind.cli.recorded_text import File, Predict, Prompt, Save, record
from moebind.params.params import N_CTX

Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="SIZE", help="A size of the cache; can be given several times.", show_default=False),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw it into a file, as well.", show_default=False)
]


@takes_model
@takes(PARAMS, RPC, *MODEL, *without(CONTEXT, "moe_cache"), n_ctx=str(N_CTX))
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
    picture = o.plot_path(plot, "curves")
    recorder = record(model, given, device, prompt, file, predict, save)
    curve = recorder.cache_curve(size or None)
    if as_json:
        show_json({"path": model, **curve.to_dict()})
    else:
        show(curve)
    if picture is not None:
        curve.plot(picture)
