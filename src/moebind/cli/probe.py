"""``moebind probe``: load a model, compute one token, and tell where everything is."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from moebind._core.tables import Column, text_table
from moebind.cli import options as o
from moebind.cli.devices import DevicesHere
from moebind.cli.given import RPC, Given, takes
from moebind.cli.loading import load, new_context, title
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS
from moebind.params.params import N_CTX

#: Any text will do.
PROMPT = "Once upon a time"

Prompt = Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="What the token follows.")]


@takes_model
@takes(PARAMS, RPC, *MODEL, *CONTEXT, n_ctx=str(N_CTX))
def command(
    model: o.ModelPath,
    prompt: Prompt = PROMPT,
    device: DevicesHere = None,
    fit: o.Fit = "on",
    *,
    given: Given,
    as_json: o.AsJson = False,
) -> None:
    """Load a model, compute one token, and tell where everything is. Also how long it took, and the plan.

    Example: moebind probe moe.gguf --cpu-moe
    """
    from moebind.placement.plan import plan

    begun = time.perf_counter()
    loaded, context_params, _ = load(model, given, device, fitted=o.wants_fit(fit))
    with loaded:
        loading = time.perf_counter() - begun
        begun = time.perf_counter()
        with new_context(loaded, context_params) as context:
            [piece] = context.generate(prompt, max_tokens=1)
            first = time.perf_counter() - begun
            n_prompt, actual = context.timings().n_p_eval, context.memory_breakdown()
        params = loaded.params.with_progress_callback(None)
        planned = plan(loaded.path, params, context_params)
        placed = loaded.placement
        name, desc = title(loaded), loaded.desc
    if as_json:
        found = {
            "path": model,
            "name": name,
            "desc": desc,
            "load_ms": round(1e3 * loading, 3),
            "first_token_ms": round(1e3 * first, 3),
            "prompt_tokens": n_prompt,
            "token": piece.token,
            "text": piece.text,
            "devices": [
                {
                    "name": device.name,
                    "model": device.model,
                    "context": device.context,
                    "compute": device.compute,
                    "moe_cache": device.moe_cache,
                    "total": device.total,
                    "planned": expected.total,
                }
                for device, expected in zip(actual.devices, planned.devices, strict=True)
            ],
            "overrides": [str(each) for each in placed],
            "plan": planned.to_dict(),
        }
        show_json(found)
        return
    show(f"{name}: loaded in {loading:.2f} s; first token {piece.text!r} after {first:.2f} s")
    for each in placed:
        show(each)
    show(actual)
    columns = [Column("planned, MiB", left=True), *(Column(each, ".1f", width=9) for each in ("planned", "actual"))]
    totals = zip(planned.devices, actual.devices, strict=True)
    rows = [[ours.name, ours.total / 2**20, theirs.total / 2**20] for ours, theirs in totals]
    show("\n".join(text_table(columns, rows, separator=" ")))
