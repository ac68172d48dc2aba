"""``moebind embed``: the embeddings of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moebind._core import checks
from moebind.cli import options as o
from moebind.cli.devices import DevicesHere
from moebind.cli.given import RPC, Given, takes
from moebind.cli.lines import Lines, Truncate, texts_of
from moebind.cli.loading import load
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS, only

Texts = Annotated[
    list[str] | None, typer.Argument(metavar="TEXT", help="Texts; else lines of standard input.", show_default=False)
]
Normalize = Annotated[
    bool, typer.Option("--normalize/--no-normalize", help="Scale embeddings to length 1, or leave them.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE.npy", help="Write an array for numpy.")]


@takes_model
@takes(PARAMS, RPC, *MODEL, *only(CONTEXT, "n_ubatch", "flash_attn", "threads", "threads_batch"))
def command(
    model: o.ModelPath,
    texts: Texts = None,
    file: Lines = None,
    pooling: o.Pooling = None,
    normalize: Normalize = True,
    truncate: Truncate = False,
    device: DevicesHere = None,
    *,
    given: Given,
    as_json: o.AsJson = False,
    output: Output = None,
) -> None:
    """Compute the embeddings of texts: a line of numbers for each.

    Example: moebind embed model.gguf "a cat" "a dog"
    """
    if as_json and output is not None:
        raise ValueError("--json and --output are both given; leave one of them out")
    if output is not None and output.suffix != ".npy":
        raise ValueError(f"--output is {str(output)!r}; it takes a name that ends in .npy")
    target = None if output is None else checks.path("output", output)
    given_texts = texts_of(texts, file)
    pooling_type = o.pooling_type(pooling)
    loaded, context_params, _ = load(model, given, device, n_ctx=None)
    with loaded:
        found = loaded.embed(
            given_texts,
            normalize=normalize,
            pooling_type=pooling_type,
            truncate=truncate,
            context_params=context_params,
        )
    if target is not None:
        import numpy as np

        np.save(target, found)
    elif as_json:
        data = [{"index": at, "embedding": row.tolist()} for at, row in enumerate(found)]
        show_json({"model": model, "data": data}, indent=None)
    else:
        for row in found:
            show(" ".join(f"{value:.7g}" for value in row))
