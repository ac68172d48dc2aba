"""``moebind tokenize``: the tokens of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moebind.cli import options as o
from moebind.cli.loading import open_model
from moebind.cli.model_argument import takes_model
from moebind.cli.output import show, show_json
from moebind.cli.text_options import PromptFile, PromptOption, one_prompt
from moebind.params.params import ModelParams

if TYPE_CHECKING:
    from moebind.model.model import Model

Text = Annotated[str | None, typer.Argument(metavar="TEXT", help="The text, or standard input.", show_default=False)]
Ids = Annotated[bool, typer.Option("--ids", help="Write the ids alone, as a list.")]
Count = Annotated[bool, typer.Option("--count", "--show-count", help="Write how many there are.")]
NoBos = Annotated[bool, typer.Option("--no-bos", help="Leave out what the model wants at the beginning and the end.")]
NoSpecial = Annotated[bool, typer.Option("--no-parse-special", help="Take names of control tokens as text.")]


@takes_model
def command(
    model: o.ModelPath,
    text: Text = None,
    prompt: PromptOption = None,
    file: PromptFile = None,
    ids: Ids = False,
    count: Count = False,
    no_bos: NoBos = False,
    no_parse_special: NoSpecial = False,
    as_json: o.AsJson = False,
) -> None:
    """Write the tokens of a text: ids and pieces. Reads the vocabulary of the model, and no weights.

    Example: moebind tokenize moe.gguf "Hello, world" --ids
    """
    if ids + count + as_json > 1:
        raise ValueError("--ids, --count and --json are forms of the output; it takes one of them")
    asked = one_prompt(text, prompt, file)
    with open_model(model, ModelParams(vocab_only=True, n_gpu_layers=0)) as loaded:
        tokens = loaded.str_to_token(asked, add_special=not no_bos, parse_special=not no_parse_special).tolist()
        pieces = [_piece(loaded, token) for token in tokens]
    if count:
        show(len(tokens))
    elif ids:
        show(tokens)
    elif as_json:
        listed = [{"id": token, "piece": piece} for token, piece in zip(tokens, pieces, strict=True)]
        show_json({"count": len(tokens), "tokens": listed}, indent=None)
    else:
        for token, piece in zip(tokens, pieces, strict=True):
            show(f"{token:6} -> {piece!r}")


def _piece(model: Model, token: int) -> str | list[int]:
    """The text of a token; its bytes where they are no text by themselves, as llama-server has them."""
    piece = model.token_to_bytes(token, special=True)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)
