"""Speculative decoding against plain decoding, in interleaved pairs: tokens a second, and how many drafts were right.

    $ python benchmarks/speculative.py --loopback              # the demo model, drafted for by the one it is made of
    $ python benchmarks/speculative.py moe.gguf draft.gguf --gpu --tokens 128 --pairs 15

Speeds of a shared machine change by the minute, so each speed with drafts is compared with one without right beside it,
which comes first and last in turn. The table has the median of the ratios, and the interval in which it lies but for a
chance of 5 %: one that holds 1 says neither that drafts gain nor that they lose. Its first row has no drafts on either
side, so that what it has beside 1 is the machine's.

The model is on the CPU, experts and all. ``--gpu`` and ``--loopback`` leave only its experts there, in host memory, and
put all else and the draft on the GPU, or on a worker process that plays one. ``docs/speculative.md`` has what came of
it.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

# Threads that wait by spinning say nothing on a machine that is busy otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import moebind
from moebind import Context, ContextParams, Model, ModelParams, Speculative

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import demo_model
from speed_judge import LEAST, judge

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


#: What drafts: nothing, the same for all texts, or one that is made for each.
Drafts = Speculative | Callable[[], Speculative] | None


def with_drafts(context: Context, prompt: str, n_tokens: int, drafts: Drafts) -> float:
    """Tokens a second with what drafts."""
    if drafts is None or isinstance(drafts, Speculative):
        return speed(context, prompt, n_tokens, drafts)
    with drafts() as made:
        return speed(context, prompt, n_tokens, made)


def pairs(context: Context, prompt: str, n_tokens: int, n_pairs: int, drafts: Drafts) -> Iterator[tuple[float, float]]:
    """Speeds without drafts and with them, one right after the other; each is first in every other pair."""
    for number in range(n_pairs):
        if number % 2:
            drafted = with_drafts(context, prompt, n_tokens, drafts)
            yield speed(context, prompt, n_tokens, None), drafted
        else:
            plain = speed(context, prompt, n_tokens, None)
            yield plain, with_drafts(context, prompt, n_tokens, drafts)


def report(
    name: str,
    context: Context,
    prompt: str,
    arguments: argparse.Namespace,
    drafts: Drafts,
) -> None:
    """Print a row of the table."""
    context.reset_timings()
    measured = list(pairs(context, prompt, arguments.tokens, arguments.pairs, drafts))
    plain, drafted = (statistics.median(each) for each in zip(*measured, strict=True))
    ratio = judge([one / other for other, one in measured])
    timings = context.timings()
    right = f"{timings.acceptance:.0%}" if timings.n_drafted else "-"
    spread = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    print(f"| {name} | {plain:.1f} | {drafted:.1f} | {spread} | {right} |", flush=True)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("draft", nargs="?")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=11, help=f"for each row, {LEAST} at least (%(default)s)")
    parser.add_argument("--n-max", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--threads", type=int, default=None)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu", action="store_true", help="all but the experts is on the GPU")
    where.add_argument("--loopback", action="store_true", help="it is on a worker process, as on a GPU")
    arguments = parser.parse_args()
    if arguments.pairs < LEAST:
        parser.error(f"--pairs is {arguments.pairs}; it takes {LEAST} at least, since fewer have no interval")
    path = arguments.model or demo_model.demo_model()
    draft_path = arguments.draft or demo_model.dense_model()
    params = ContextParams(n_ctx=2048)
    if arguments.threads:
        params = params.with_n_threads(arguments.threads).with_n_threads_batch(arguments.threads)
    with ExitStack() as opened:
        on = whole = ModelParams(n_gpu_layers=0, devices=())
        if arguments.gpu or arguments.loopback:
            on = ModelParams(n_gpu_layers=-1)
            if arguments.loopback:
                on = on.with_devices([opened.enter_context(moebind.loopback_device())])
            whole = on.with_cpu_moe_all()
        model = opened.enter_context(Model.load_from_file(path, whole))
        drafts = opened.enter_context(Model.load_from_file(draft_path, on))
        context = opened.enter_context(model.new_context(params))
        draft = opened.enter_context(drafts.new_context(params))
        print(f"{arguments.pairs} pairs of {arguments.tokens} tokens\n\n{context.memory_breakdown()}\n", flush=True)
        print("| drafts | plain, tokens/s | with drafts | ratio | right |\n| --- | --- | --- | --- | --- |", flush=True)
        report("none, story", context, STORY, arguments, None)
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
