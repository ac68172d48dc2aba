"""``moebind plan``: what a model and a context will take, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moebind.backend.devices import default_devices
from moebind.cli import options as o
from moebind.cli.devices import Devices, Host, checked_size, device_list, separate
from moebind.cli.drafts import DRAFTS, draft_of
from moebind.cli.given import RPC, Given, takes
from moebind.cli.media import Counted
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS
from moebind.params.params import N_CTX, ContextParams
from moebind.placement.plan import plan

Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw it into a file, as well.", show_default=False)
]
#: What is said where devices were left open, and there is none besides the processor.
NO_GPU = (
    "No GPU was found: everything is in host memory. --device 24GiB plans for a card of that size all the same; "
    "moebind doctor says why there is none."
)


@takes_model
@takes(PARAMS, RPC, *MODEL, *CONTEXT, *DRAFTS, n_ctx=f"{N_CTX}; in Python, {ContextParams().n_ctx}")
def command(
    model: o.ModelPath,
    given: Given,
    device: Devices = None,
    host: Host = None,
    mmproj: Counted = None,
    as_json: o.AsJson = False,
    plot: Plot = None,
    check: Annotated[bool, typer.Option("--check", help="End with 1 if it does not fit.")] = False,
) -> None:
    """Tell what a model and a context would take, device by device. Loads nothing.

    Example: moebind plan moe.gguf --device 24GiB --cpu-moe --ctx-size 8192
    """
    picture = o.plot_path(plot, "plans")
    chosen = given.read(model, separate(device), host, n_ctx=N_CTX)
    chosen.check_moe_cache(chosen.context_params.moe_cache_size, described=True)
    listed = device_list(chosen.device)
    found = plan(
        model,
        chosen.model_params,
        chosen.context_params,
        devices=listed,
        host=None if chosen.host is None else checked_size(chosen.host, "--host"),
        mmproj=mmproj,
        draft=draft_of(given, model, chosen.model_params, chosen.context_params, listed),
    )
    if as_json:
        show_json(found.to_dict())
    else:
        if listed is None and chosen.model_params.n_gpu_layers and not default_devices():
            show(NO_GPU)
        show(o.calls_as_options(str(found)))
    if picture is not None:
        found.plot(picture)
    if check and not found.fits:
        raise typer.Exit(1)
