"""``moebind generate``: a text that goes on from a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moebind.cli import options as o
from moebind.cli import text_options as t
from moebind.cli.devices import DevicesHere
from moebind.cli.drafts import DRAFTS, RARE_DRAFTS
from moebind.cli.given import RPC, TUNED, Given, takes
from moebind.cli.media import Audio, Images, Projector
from moebind.cli.model_argument import takes_model
from moebind.cli.output import say, show_line, stream
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS
from moebind.cli.writing import writing
from moebind.params.params import N_CTX

if TYPE_CHECKING:
    from moebind.model.model import Model
    from moebind.sampling.sampler import Sampler

Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="The text to go on from, or standard input.", show_default=False),
]
Grammar = Annotated[
    str | None, typer.Option("--grammar", metavar="GBNF", help="A grammar that the text fits; or --grammar-file.")
]
GrammarFile = Annotated[
    Path | None, typer.Option("--grammar-file", metavar="FILE", help="The same from a file.", hidden=True)
]
AsJson = Annotated[bool, typer.Option("--json", help="Write a line of JSON for each token, and one at the end.")]
Timings = Annotated[bool, typer.Option("--timings", help="Tell at the end how long it took.")]


@takes_model
@takes(PARAMS, TUNED, RPC, *MODEL, *CONTEXT, *t.SAMPLING, *DRAFTS, hidden=t.RARE | RARE_DRAFTS, n_ctx=str(N_CTX))
def command(
    model: o.ModelPath,
    text: Prompt = None,
    prompt: t.PromptOption = None,
    file: t.PromptFile = None,
    predict: t.Predict = -1,
    stop: t.Stop = None,
    grammar: Grammar = None,
    grammar_file: GrammarFile = None,
    json_schema: t.Schema = None,
    json_schema_file: t.SchemaFile = None,
    device: DevicesHere = None,
    image: Images = None,
    audio: Audio = None,
    mmproj: Projector = None,
    fit: o.Fit = "on",
    *,
    given: Given,
    as_json: AsJson = False,
    timings: Timings = False,
) -> None:
    """Write a text that goes on from a prompt, token by token. Ends with Ctrl-C.

    Example: moebind generate moe.gguf "The capital of France is" -n 16
    """
    from moebind.mtmd.bitmap import Bitmap

    asked = t.one_prompt(text, prompt, file)
    rules = t.one_text(grammar, grammar_file, ("--grammar", "--grammar-file"))
    schema = t.one_text(json_schema, json_schema_file, ("--json-schema", "--json-schema-file"))
    if rules is not None and schema is not None:
        raise ValueError("--grammar and --json-schema are both given; leave one of them out")
    media = [*(image or ()), *(audio or ())]
    with writing(model, given, device, fitted=o.wants_fit(fit), mmproj=mmproj, media=media) as (
        context,
        mtmd,
        speculative,
    ):
        choice = t.sampling(given)
        sampler = None
        if rules is not None:
            sampler, choice = _held_to(rules, context.model, asked, choice), {}
        looked_at: list[str | Bitmap] = [Bitmap.from_file(path, mtmd) for path in media]
        whole: str | list[str | Bitmap] = [*looked_at, asked] if looked_at else asked
        pieces = context.generate(
            whole,
            mtmd=mtmd,
            sampler=sampler,
            max_tokens=predict,
            stop=stop or (),
            json_schema=schema,
            speculative=speculative,
            **choice,
        )
        try:
            for piece in pieces:
                if as_json:
                    show_line({"index": piece.index, "token": piece.token, "text": piece.text})
                else:
                    stream(piece.text)
        finally:
            # After Ctrl-C, too: what came is whole.
            if as_json:
                found = t.ended(pieces.usage, pieces.stop_reason, context.timings())
                show_line({"text": pieces.text, "stop": pieces.stop, **found})
            elif pieces.text and not pieces.text.endswith("\n"):
                stream("\n")
        if timings:
            say(str(context.timings()))


def _held_to(grammar: str, model: Model, prompt: str, choice: dict[str, object]) -> Sampler:
    """What chooses as the options say, from what a grammar allows."""
    from moebind.sampling.sampler import Sampler
    from moebind.sampling.settings import Settings, behind

    chain = Settings(**choice).sampler(model.str_to_token(prompt))  # type: ignore[arg-type]
    return behind(Sampler.grammar(model, grammar), chain, own=True)
