"""``moebind inspect``: what a model is, from the headers of its files."""

from __future__ import annotations

from typing import Annotated

import typer

from moebind._core.tables import Column, text_table
from moebind.cli import options as o
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.files.model_card import ModelCard, inspect, printable


@takes_model
def command(
    model: o.ModelPath,
    tensors: Annotated[bool, typer.Option("--tensors", help="List its tensors.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Show its chat template, and nothing else.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Tell what a model is: size, types, experts, context. Also vocabulary and template. Loads nothing.

    Example: moebind inspect moe.gguf --tensors
    """
    card = inspect(model)
    if template and not as_json:
        if card.chat_template is None:
            raise ValueError(f"{model} has no chat template")
        show(card.chat_template)
        return
    if as_json:
        show_json({name: value for name, value in card.to_dict().items() if tensors or name != "tensors"})
        return
    show(card)
    if tensors:
        show("")
        show("\n".join(_listed(card)))


def _listed(card: ModelCard) -> list[str]:
    columns = [Column("tensor", left=True), Column("shape", left=True), Column("type", left=True), Column("bytes")]
    rows = [
        (printable(each.name), " x ".join(map(str, each.shape)), each.type.name, each.nbytes)
        for each in card.tensors.values()
    ]
    return text_table(columns, rows)
