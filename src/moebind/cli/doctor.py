"""``moebind doctor``: what is there, what is missing, and what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from moebind.cli import options as o
from moebind.cli.given import Given, takes
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS
from moebind.diagnosis.diagnosis import Severity
from moebind.diagnosis.findings import doctor

#: Parameters that findings depend on; the others are taken, so that a command line may stay as it is.
_SHOWN = {"n_gpu_layers", "load_mode", "no_mmap", "threads", "threads_batch"}
_HIDDEN = {option.name for option in (PARAMS, *MODEL, *CONTEXT)} - _SHOWN

Model = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="A model that is to be loaded.", show_default=False)
]


@takes_model
@takes(PARAMS, *MODEL, *CONTEXT, hidden=_HIDDEN)
def command(
    model: Model = None,
    *,
    given: Given,
    as_json: o.AsJson = False,
) -> None:
    """Examine the build, the devices, the processor and the limits. Ends with 1 if something will fail.

    Example: moebind doctor moe.gguf
    """
    chosen = given.read(model or "")
    found = doctor(model, chosen.model_params, chosen.context_params)
    if as_json:
        listed = [{"what": each.what, "why": each.why, "do": each.do, "severity": each.severity.name} for each in found]
        show_json({"ok": found.ok, "findings": listed})
    else:
        show(o.calls_as_options(str(found)))
    if any(each.severity is Severity.PROBLEM for each in found):
        raise typer.Exit(1)
