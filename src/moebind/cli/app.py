"""All commands, under their names."""

from __future__ import annotations

from typing import Annotated

import typer

from moebind.cli import bench, cache, doctor, experts, fit, inspect, list_models, plan, rpc_worker, serve
from moebind.cli.output import version

app = typer.Typer(
    help="llama.cpp for Python, with a mixture-of-experts model's experts in host memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(
    shown: Annotated[
        bool, typer.Option("--version", help="Show the versions of moebind and llama.cpp.", callback=version)
    ] = False,
) -> None:
    pass


app.command("plan")(plan.command)
app.command("fit")(fit.command)
app.command("experts")(experts.command)
app.command("inspect")(inspect.command)
app.command("list")(list_models.command)
app.command("cache")(cache.command)
app.command("doctor")(doctor.command)
app.command("rpc-worker")(rpc_worker.command)
app.command("serve", cls=serve.WithRest)(serve.command)
app.add_typer(bench.app, name="bench")
