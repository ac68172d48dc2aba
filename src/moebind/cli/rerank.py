"""``moebind rerank``: how well texts answer a question."""

from __future__ import annotations

from typing import Annotated

import typer

from moebind.cli import options as o
from moebind.cli.devices import DevicesHere
from moebind.cli.given import RPC, Given, takes
from moebind.cli.lines import Lines, Truncate, texts_of
from moebind.cli.loading import load
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS, only

Query = Annotated[str | None, typer.Argument(metavar="QUERY", help="The question.", show_default=False)]
Texts = Annotated[
    list[str] | None, typer.Argument(metavar="TEXT", help="Texts; else lines of standard input.", show_default=False)
]
Best = Annotated[
    int | None, typer.Option("--top-n", metavar="N", min=1, help="Only the best ones.", show_default="all")
]


@takes_model
@takes(PARAMS, RPC, *MODEL, *only(CONTEXT, "n_ubatch", "flash_attn", "threads", "threads_batch"))
def command(
    model: o.ModelPath,
    query: Query = None,
    texts: Texts = None,
    file: Lines = None,
    top_n: Best = None,
    truncate: Truncate = False,
    device: DevicesHere = None,
    *,
    given: Given,
    as_json: o.AsJson = False,
) -> None:
    """Sort texts by how well they answer a question, best first. A line has score, number and text.

    Example: moebind rerank model.gguf "How do I exit?" "Press q." "It rains."
    """
    if query is None:
        raise ValueError("there is no QUERY: moebind rerank MODEL QUERY TEXT...")
    given_texts = texts_of(texts, file)
    loaded, context_params, _ = load(model, given, device, n_ctx=None)
    with loaded:
        scores = loaded.rerank(query, given_texts, truncate=truncate, context_params=context_params)
    best = (-scores).argsort(kind="stable")[:top_n].tolist()
    if as_json:
        results = [{"index": at, "relevance_score": float(scores[at]), "document": given_texts[at]} for at in best]
        show_json({"model": model, "results": results})
    else:
        for at in best:
            show(f"{scores[at]:9.4f} {at:4} {given_texts[at]}")
