"""``moebind routing``: which experts a text is sent to."""

from __future__ import annotations

import shutil
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
from moebind.placement.heat_map import WIDTH_MIN

Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw the heat map into a file, too.", show_default=False)
]
PlotCache = Annotated[
    Path | None, typer.Option("--plot-cache", metavar="FILE", help="And the cache's curve.", show_default=False)
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
    save: Save = None,
    as_json: o.AsJson = False,
    plot: Plot = None,
    plot_cache: PlotCache = None,
) -> None:
    """Show which experts a text is sent to, layer by layer. Also how often a cache of experts would hit.

    Example: moebind routing moe.gguf -p "Write a poem" -n 64 --plot routing.svg
    """
    pictures = o.plot_path(plot, "heat maps"), o.plot_path(plot_cache, "curves", "--plot-cache")
    recorder = record(model, given, device, prompt, file, predict, save)
    curve = recorder.cache_curve()
    if as_json:
        show_json({"path": model, **recorder.to_dict(), "cache": curve.to_dict()})
    else:
        show(recorder.heat_map(max(shutil.get_terminal_size((100, 24)).columns, WIDTH_MIN)))
        show("")
        show(curve)
    if pictures[0] is not None:
        recorder.plot(pictures[0])
    if pictures[1] is not None:
        curve.plot(pictures[1])
