"""``moebind fit``: parameters that fit into a budget of memory."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, cast

import typer

from moebind._core.sizes import parse_size
from moebind.cli import options as o
from moebind.cli.budgets import Margin, Memory, budgets
from moebind.cli.devices import Devices, Host, checked_size, device_list, separate
from moebind.cli.drafts import DRAFTS, draft_of
from moebind.cli.given import RPC, Chosen, Given, takes
from moebind.cli.media import Counted
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS, unwritten, without
from moebind.cli.token_counts import token_count
from moebind.cli.written_options import as_options
from moebind.placement.cache_share import BUS
from moebind.placement.described_devices import is_description
from moebind.placement.fit import fit
from moebind.placement.routing import RoutingRecorder

if TYPE_CHECKING:
    from typing import Literal

Context = Annotated[
    str | None,
    typer.Option(
        "--ctx-size",
        "--n-ctx",
        "-c",
        metavar="N",
        help="Tokens of context, such as 32k.",
        show_default="as many as fit",
    ),
]
ContextMin = Annotated[
    str,
    typer.Option("--ctx-size-min", "--n-ctx-min", metavar="N", help="The shortest context that will do.", hidden=True),
]
For = Annotated[str, typer.Option("--goal", metavar="decode|prompt|balanced", help="What is to be fast.")]
Cache = Annotated[
    str | None,
    typer.Option(
        "--moe-cache",
        metavar="SIZE",
        help="A cache of experts; auto: by --routing.",
        show_default="0",
    ),
]
Routing = Annotated[
    str | None,
    typer.Option(
        "--routing",
        metavar="FILE",
        help="What routers chose, from moebind cache --save FILE; for --moe-cache auto.",
        show_default=False,
        hidden=True,
    ),
]
Bus = Annotated[
    float,
    typer.Option(
        "--bus",
        metavar="X",
        help="How fast the bus to the devices is, in multiples of host memory; for --moe-cache auto.",
        hidden=True,
    ),
]
Save = Annotated[
    str | None,
    typer.Option("--save", metavar="FILE", help="Keep it in a file, for --params.", show_default=False),
]


@takes_model
@takes(PARAMS, RPC, *MODEL, *without(CONTEXT, "n_ctx", "moe_cache"), *DRAFTS, swa_full="swa-full where it costs little")
def command(
    model: o.ModelPath,
    given: Given,
    memory: Memory = None,
    margin: Margin = None,
    device: Devices = None,
    host: Host = None,
    goal: For = "decode",
    ctx_size: Context = None,
    ctx_size_min: ContextMin = "4096",
    moe_cache: Cache = None,
    routing: Routing = None,
    bus: Bus = BUS,
    save: Save = None,
    mmproj: Counted = None,
    as_json: o.AsJson = False,
) -> None:
    """Find parameters with which a model fits into memory. Ends with 1 if there are none.

    Example: moebind fit moe.gguf --memory 8GiB --save fit.json
    """
    chosen = given.read(model, separate(device), host)
    listed = device_list(chosen.device)
    found = fit(
        model,
        memory=budgets(memory),
        margin=margin,
        n_ctx=None if ctx_size is None else token_count("--ctx-size", ctx_size),
        n_ctx_min=token_count("--ctx-size-min", ctx_size_min),
        model_params=chosen.model_params,
        context_params=chosen.context_params,
        devices=listed,
        goal=cast("Literal['decode', 'prompt', 'balanced']", goal),
        host=None if chosen.host is None else checked_size(chosen.host, "--host"),
        mmproj=mmproj,
        draft=draft_of(given, chosen.model_params, chosen.context_params, listed),
        swa_full=given.values["swa_full"],
        moe_cache=moe_cache if moe_cache in {None, "auto"} else parse_size("--moe-cache", moe_cache),
        routing=None if routing is None else RoutingRecorder.load(routing),
        bus=bus,
    )
    if save is not None:
        found.save(save)
    options = as_options(found.model_params, found.context_params, chosen.device)
    if as_json:
        show_json({**found.to_dict(), "options": options})
    else:
        show(o.calls_as_options(str(found)))
        show(f"In Python: {found.model_params}, {found.context_params}")
        lacking = [*unwritten(found.model_params), *unwritten(found.context_params)]
        but = f" (none sets {' and '.join(lacking)}; --save and --params keep it)" if lacking else ""
        show(f"Options of moebind {_commands(chosen)}{but}: {shlex.join(options)}")
    if not found.plan.fits:  # such as where the host, which has no budget of its own, has too little free
        raise typer.Exit(1)


def _commands(chosen: Chosen) -> str:
    """The commands that take the options, and what of them does not go for all."""
    # A server takes only devices that are here, and its --host is another one.
    plan = "plan" if chosen.host is None else f"plan (with --host {chosen.host} besides)"
    described = any(is_description(each) for each in chosen.device or ())
    return f"{plan} and bench, and without --device of serve" if described else f"{plan}, bench and serve"
