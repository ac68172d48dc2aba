"""``moebind list``: the models that are here, and whether they fit."""

from __future__ import annotations

from typing import Annotated

import typer

from moebind.cli import options as o
from moebind.cli.budgets import Margin, Memory, budgets
from moebind.cli.devices import Devices, Host, checked_size, device_list, separate
from moebind.cli.output import passing, show, show_json
from moebind.placement.listing import list_models, listing_text

Folders = Annotated[
    list[str] | None,
    typer.Argument(metavar="FOLDER", help="Folders to search, with all in them.", show_default="the Hub's cache"),
]


def command(
    folders: Folders = None,
    hub: Annotated[bool, typer.Option("--hub", help="List what is in the Hub's cache beside folders.")] = False,
    no_fit: Annotated[bool, typer.Option("--no-fit", help="Do not find out whether they fit: quick.")] = False,
    memory: Memory = None,
    margin: Margin = None,
    device: Devices = None,
    host: Host = None,
    ctx_size: Annotated[
        int | None,
        typer.Option("--ctx-size", "--n-ctx", "-c", metavar="N", help="Tokens of context.", show_default="what fits"),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """List the models in folders and in the Hub's cache. Tells size, type, experts, and whether they fit.

    Example: moebind list models --device 24GiB --host 64GiB
    """
    described = device_list(separate(device))
    with passing() as tell:
        rows = list_models(
            folders or [],
            hub=True if hub else None,
            fits=not no_fit,
            memory=budgets(memory),
            margin=margin,
            n_ctx=ctx_size,
            devices=described,
            host=None if host is None else checked_size(host, "--host"),
            progress=tell,
        )
    if as_json:
        show_json({"models": [row.to_dict() for row in rows]})
    elif rows:
        show(o.calls_as_options(listing_text(rows)))
    else:
        where = ", ".join(folders) if folders else "the Hub's cache"
        show(f"There is no GGUF file in {where}. moebind get OWNER/REPO:QUANT brings one.")
