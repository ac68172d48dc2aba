"""Speculative decoding: a smaller model drafts, the model keeps what it would have written itself, and it is timed.

    python examples/speculative.py                                # the demo model, and the dense one it is made of
    python examples/speculative.py -m moe.gguf -md draft.gguf     # your own: two models with the same vocabulary

Each token is the model's own choice, with drafts or without. Whether they come sooner depends on the machine, so both
are measured. Where two tokens are about as likely, the texts may part: several at once are added up in another order.
"""

from __future__ import annotations

from arguments import ModelParser
from demo_model import dense_model

import moebind
from moebind import Completion, Context, ContextParams, Model, Speculative


def timed(context: Context, prompt: str, max_tokens: int, speculative: Speculative | str | None) -> Completion:
    """Go on from a prompt, and say how quickly."""
    context.reset_timings()
    # From the beginning, so that each has the same to do.
    pieces = context.generate(prompt, max_tokens=max_tokens, speculative=speculative, reuse_prefix=False)
    completion = pieces.complete()
    timings = context.timings()
    milliseconds = timings.t_eval_ms + timings.t_draft_ms
    drafted = f", {timings.n_accepted} of {timings.n_drafted} drafted tokens were right" if timings.n_drafted else ""
    print(f"  {timings.n_eval} tokens in {milliseconds:.0f} ms{drafted}")
    return completion


def main() -> None:
    """Write a text without drafts, with a model's, and with n-grams."""
    parser = ModelParser(__doc__, max_tokens=32)
    parser.add_argument(
        "-md", "--draft", help="a model that drafts; without it, the one that the demo model is made of"
    )
    parser.add_argument(
        "-p", "--prompt", default="A shopping list: bread, milk, eggs.\nThe shopping list again: bread,"
    )
    arguments = parser.parsed()
    draft_path = arguments.draft or dense_model()

    # What both take together, before either is loaded.
    params = ContextParams(n_ctx=1024)
    print(moebind.plan(arguments.model, context_params=params, draft=draft_path).summary)

    with (
        Model.load_from_file(arguments.model) as model,
        Model.load_from_file(draft_path) as drafts,
        model.new_context(params) as context,
        drafts.new_context(params) as draft_context,
        Speculative(context, draft_context, n_max=4) as speculative,
    ):
        print("without drafts:")
        plain = timed(context, arguments.prompt, arguments.max_tokens, None)
        print("with a draft model:")
        drafted = timed(context, arguments.prompt, arguments.max_tokens, speculative)
        print("with n-grams, switched off where they lose:")
        timed(context, arguments.prompt, arguments.max_tokens, "auto")
        pairs = enumerate(zip(plain.tokens, drafted.tokens, strict=True))
        same = next((at for at, (one, other) in pairs if one != other), len(plain.tokens))
        print(f"the same text for {same} of {len(plain.tokens)} tokens:")
        print(plain.text)


if __name__ == "__main__":
    main()
