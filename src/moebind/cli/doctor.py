"""``moebind doctor``: what is there, what is missing, and what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from moebind.cli import options as o
from moebind.cli.output import show, show_json
from moebind.diagnosis.findings import Severity, doctor

Model = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="A model that is to be loaded.", show_default=False)
]


def command(
    model: Model = None,
    n_gpu_layers: o.GpuLayers = "all",
    no_mmap: o.NoMmap = False,
    threads: o.Threads = None,
    as_json: o.AsJson = False,
) -> None:
    """Examine the build, the devices, the processor and the limits. Ends with 1 if something will fail."""
    found = doctor(
        model,
        o.model_params(n_gpu_layers, no_mmap=no_mmap),
        o.context_params(o.DEFAULT.n_ctx, threads=threads),
    )
    if as_json:
        listed = [{"what": each.what, "why": each.why, "do": each.do, "severity": each.severity.name} for each in found]
        show_json({"ok": found.ok, "findings": listed})
    else:
        show(found)
    if any(each.severity is Severity.PROBLEM for each in found):
        raise typer.Exit(1)
