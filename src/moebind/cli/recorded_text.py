"""A text that commands compute to see which experts its tokens are sent to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from moebind.cli.given import Given
from moebind.cli.loading import load, new_context
from moebind.cli.output import passing
from moebind.placement.routing import RoutingRecorder

__all__ = ["File", "Predict", "Prompt", "Save", "record"]

PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."

Prompt: TypeAlias = Annotated[
    str | None,
    typer.Option("--prompt", "-p", metavar="TEXT", help="What the model goes on from.", show_default="a short story"),
]
File: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="A text that is computed token by token, as if the model had written it, in place of a prompt.",
        show_default=False,
    ),
]
Predict: TypeAlias = Annotated[
    int, typer.Option("--predict", "--n-predict", "-n", metavar="N", min=1, help="Tokens that it writes, or computes.")
]

Save: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--save",
        metavar="FILE",
        help="Keep what the routers chose, for moebind fit --moe-cache auto --routing FILE.",
        show_default=False,
    ),
]


def record(
    model: str,
    given: Given,
    device: list[str] | None,
    prompt: str | None,
    file: Path | None,
    predict: int,
    save: Path | None = None,
) -> RoutingRecorder:
    """Load a model, have it go on from a prompt or compute a text, and keep which experts it chose, in order.

    ``save`` is a file that it is kept in, too.

    Raises
    ------
    ValueError
        If both a prompt and a file are given, or the model has no experts.
    """
    if prompt is not None and file is not None:
        raise ValueError("--prompt and --file are both given: leave one of them out")
    text = None if file is None else file.read_text(encoding="utf-8")
    recorder = RoutingRecorder(order=True)
    loaded, context_params, _ = load(model, given, device)
    with loaded, new_context(loaded, context_params.with_eval_callback(recorder)) as context, passing() as tell:
        if not loaded.n_expert:
            raise ValueError(f"{model} has no experts: nothing is chosen")
        from moebind.context.batch import Batch

        if text is None:
            tokens = loaded.str_to_token(PROMPT if prompt is None else prompt)
            for start in range(0, tokens.size, context.n_batch):
                context.decode(Batch.get_one(tokens[start : start + context.n_batch]))
            # A token that would end the text does not, as in llama-bench: there is always something to count.
            count = min(predict, context.n_ctx_seq - tokens.size)
            for at in range(count):
                tell(f"token {at + 1} of {count}")
                context.decode(Batch.get_one([int(context.get_logits_ith(-1).argmax())]))
        else:
            tokens = loaded.str_to_token(text)[: min(predict, context.n_ctx_seq)]
            for at, token in enumerate(tokens.tolist()):
                tell(f"token {at + 1} of {tokens.size}")
                context.decode(Batch.get_one([token]))
    if save is not None:
        recorder.save(save)
    return recorder
