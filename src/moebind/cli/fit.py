"""``moebind fit``: parameters that fit into a budget of memory."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, cast

import typer

from moebind._core.sizes import parse_size
from moebind.cli import options as o
from moebind.cli.budgets import Margin, Memory, budgets
from moebind.cli.devices import Devices, Host, checked_size, device_list, separate
from moebind.cli.drafts import DRAFTS, draft_of, written
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
    from collections.abc import Sequence
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
    cache = moe_cache if moe_cache in {None, "auto"} else parse_size("--moe-cache", moe_cache)
    size = cache if isinstance(cache, int) else chosen.context_params.moe_cache_size if cache is None else 0
    chosen.check_moe_cache(size, described=True)
    listed = device_list(chosen.device)
    draft = draft_of(given, model, chosen.model_params, chosen.context_params, listed)
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
        draft=draft,
        swa_full=given.values["swa_full"],
        moe_cache=cache,
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
        drafts = "" if draft is None else f", draft={draft}"
        show(f"In Python: {found.model_params}, {found.context_params}{drafts}")
        lacking = [*unwritten(found.model_params), *unwritten(found.context_params)]
        but = f" (none sets {' and '.join(lacking)}; --save and --params keep it)" if lacking else ""
        beside = [*written(given), *(["--mmproj", mmproj] if isinstance(mmproj, str) else [])]
        for names, words in _by_command(options, chosen, beside):
            show(f"Options of moebind {names}{but}: {shlex.join(words)}")
    if not found.plan.fits:  # such as where the host, which has no budget of its own, has too little free
        raise typer.Exit(1)


def _by_command(options: Sequence[str], chosen: Chosen, beside: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Names of commands, and the options that they take: devices that are only described, a host, what is beside."""
    described = {at for at, flag in enumerate(options[:-1]) if flag == "--device" and is_description(options[at + 1])}
    here = [word for at, word in enumerate(options) if at not in described and at - 1 not in described]
    host = [] if chosen.host is None else ["--host", chosen.host]
    lines: dict[tuple[str, ...], list[str]] = {}
    for name, words in (
        ("plan", [*options, *host, *beside]),
        ("bench", options),
        *((each, [*here, *beside]) for each in ("generate", "chat", "serve")),
    ):
        lines.setdefault(tuple(words), []).append(name)
    return [
        (" and ".join(filter(None, [", ".join(names[:-1]), names[-1]])), list(words)) for words, names in lines.items()
    ]
