"""The command line: the names of all commands, and where they are."""

from __future__ import annotations

from typing import Annotated

import typer

from moebind.cli.lazy import PLUGINS, lazy_group
from moebind.cli.output import version
from moebind.cli.signatures import HelpAll

__all__ = ["COMMANDS", "app"]

#: The module of each command, which is imported when it is asked for.
COMMANDS = {
    "generate": "moebind.cli.generate",
    "chat": "moebind.cli.chat",
    "probe": "moebind.cli.probe",
    "embed": "moebind.cli.embed",
    "rerank": "moebind.cli.rerank",
    "tokenize": "moebind.cli.tokenize",
    "plan": "moebind.cli.plan",
    "fit": "moebind.cli.fit",
    "tune": "moebind.cli.tune",
    "experts": "moebind.cli.experts",
    "inspect": "moebind.cli.inspect",
    "list": "moebind.cli.list_models",
    "get": "moebind.cli.get",
    "devices": "moebind.cli.show_devices",
    "quantize": "moebind.cli.quantize",
    "routing": "moebind.cli.routing",
    "cache": "moebind.cli.cache",
    "doctor": "moebind.cli.doctor",
    "rpc-worker": "moebind.cli.rpc_worker",
    "serve": "moebind.cli.serve",
    "bench": "moebind.cli.bench",
}

app = typer.Typer(
    cls=lazy_group(COMMANDS, PLUGINS),
    help="llama.cpp for Python, with a mixture-of-experts model's experts in host memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100, "help_option_names": ["--help", "-h"]},
)


@app.callback()
def _options(
    shown: Annotated[
        bool, typer.Option("--version", help="Show the versions of moebind and llama.cpp.", callback=version)
    ] = False,
    help_all: HelpAll = False,
) -> None:
    pass
