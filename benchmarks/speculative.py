"""Speculative decoding against plain decoding, in interleaved pairs: tokens a second, and how many drafts were right.

    $ python benchmarks/speculative.py                         # the demo model, drafted for by the one it is made of
    $ python benchmarks/speculative.py moe.gguf draft.gguf --tokens 128 --pairs 5

Speeds of a shared machine change by the minute, so each speed with drafts is compared with one without right before it.
The table has the median of the ratios. The model is on the CPU, experts and all; ``--gpu`` puts all but the experts on
the GPU, and the draft as well. ``docs/speculative.md`` has what came of it.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Threads that wait by spinning say nothing on a machine that is busy otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import moebind
from moebind import Context, ContextParams, Model, ModelParams, Speculative

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import demo_model

#: A story, which repeats nothing, and a text that is there once already.
STORY = "Once upon a time, in a village by the sea,"
TEXT = (
    "The harbour lies below the old town. Fishermen leave before sunrise, and their boats come back at noon. In winter "
    "the ferry does not run, so that letters arrive a week late. The baker, whose oven is the only warm place then, "
    "keeps them in a drawer until somebody asks.\n"
)
COPY = TEXT + "\n" + TEXT + "\n" + TEXT[:60]


def speed(context: Context, prompt: str, n_tokens: int, speculative: Speculative | None) -> float:
    """Tokens a second after the first, which takes the prompt."""
    pieces = context.generate(prompt, max_tokens=n_tokens, speculative=speculative)
    next(pieces)
    began = moebind.time_us()
    n = sum(1 for _ in pieces)
    return 1e6 * n / (moebind.time_us() - began)


def pairs(
    context: Context, prompt: str, n_tokens: int, n_pairs: int, speculative: Speculative | Callable[[], Speculative]
) -> Iterator[tuple[float, float]]:
    """Speeds without drafts and with them, one right after the other; what is called makes one for each text."""
    for _ in range(n_pairs):
        plain = speed(context, prompt, n_tokens, None)
        if isinstance(speculative, Speculative):
            yield plain, speed(context, prompt, n_tokens, speculative)
        else:
            with speculative() as made:
                yield plain, speed(context, prompt, n_tokens, made)


def report(
    name: str,
    context: Context,
    prompt: str,
    arguments: argparse.Namespace,
    made: Speculative | Callable[[], Speculative],
) -> None:
    """Print a row of the table."""
    context.reset_timings()
    measured = list(pairs(context, prompt, arguments.tokens, arguments.pairs, made))
    plain, drafted = (statistics.median(each) for each in zip(*measured, strict=True))
    ratio = statistics.median(one / other for other, one in measured)
    timings = context.timings()
    right = f"{timings.acceptance:.0%}" if timings.n_drafted else "-"
    print(f"| {name} | {plain:.1f} | {drafted:.1f} | {ratio:.2f} | {right} |", flush=True)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("draft", nargs="?")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--n-max", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    path = arguments.model or demo_model.demo_model()
    draft_path = arguments.draft or demo_model.dense_model()
    host = ModelParams(n_gpu_layers=0, devices=())
    on = ModelParams(n_gpu_layers=-1) if arguments.gpu else host
    params = ContextParams(n_ctx=2048)
    if arguments.threads:
        params = params.with_n_threads(arguments.threads).with_n_threads_batch(arguments.threads)
    print("| drafts | plain, tokens/s | with drafts | ratio | right |\n| --- | --- | --- | --- | --- |", flush=True)
    with (
        Model.load_from_file(path, on.with_cpu_moe_all() if arguments.gpu else on) as model,
        Model.load_from_file(draft_path, on) as drafts,
        model.new_context(params) as context,
        drafts.new_context(params) as draft,
    ):
        for n_max in arguments.n_max:
            with Speculative(context, draft, n_max=n_max) as made:
                report(f"draft model, n_max {n_max}, story", context, STORY, arguments, made)
        for n_max in arguments.n_max:
            for name, prompt in (("copy", COPY), ("story", STORY)):
                with Speculative(context, kind="ngram-simple", n_match=2, n_max=n_max) as made:
                    report(f"n-grams, n_max {n_max}, {name}", context, prompt, arguments, made)
        # A first text, which finds out, each time by a new one that drafts; and texts after it, which know.
        automatic = functools.partial(Speculative, context, draft, n_max=8, auto=True)
        report("draft model, n_max 8, auto, first text, story", context, STORY, arguments, automatic)
        with automatic() as made:
            speed(context, STORY, arguments.tokens, made)
            report("draft model, n_max 8, auto, later texts, story", context, STORY, arguments, made)


if __name__ == "__main__":
    main()
