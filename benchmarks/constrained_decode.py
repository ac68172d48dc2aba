"""How fast a model writes JSON that satisfies a schema, beside any text, in interleaved pairs.

    python benchmarks/constrained_decode.py [MODEL.gguf] [--threads N] [--rounds N] [--tokens N] [--vocabulary N]

Each round lets the model write a list of objects that it is held to, by a schema that was never used before, and then
as many tokens of any text: the likeliest, and again with the usual chain of samplers. The time is that from the first
piece to the last. On a shared machine only the ratio means something; the median of the rounds is told, with the
extremes. With --vocabulary, the model is made to have so many tokens (``wide_vocabulary.py``).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from constrained import STRING, an_object
from programs import arguments, demo_model
from wide_vocabulary import widened

from moebind import Context, ContextParams, Model, ModelParams

PROMPT = "Here is a list of ten people with their towns and ages:\n"
#: What each kind of round gives to ``generate``.
CHAINS: dict[str, dict[str, Any]] = {"greedy": {}, "sampled": {"temperature": 0.8, "seed": 1}}

fresh = count()


def schema() -> dict[str, object]:
    """A list that no reply comes to the end of, and of which no grammar is kept."""
    person = an_object(name=STRING, town=STRING, age={"type": "integer"}, hobbies={"type": "array", "items": STRING})
    return {"type": "array", "minItems": 200 + next(fresh), "items": person}


def seconds(context: Context, tokens: int, clock: Callable[[], float], **options: Any) -> tuple[float, int]:
    """How long it wrote, and how many tokens after the first."""
    context.kv_cache_clear()
    stamps = [clock() for _ in context.generate(PROMPT, max_tokens=tokens, **options)]
    return stamps[-1] - stamps[0], len(stamps) - 1


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, "the demo model", 128)
    parser.add_argument("--vocabulary", type=int, help="this many tokens")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="with --threads 1, of the thread that does all of it: for a machine that is busy otherwise",
    )
    options = parser.parse_args()
    if options.processor_time and options.threads != 1:
        parser.error("--processor-time takes --threads 1: other threads would not be counted")
    clock = time.thread_time if options.processor_time else time.perf_counter
    params = ContextParams(
        n_ctx=options.tokens + 64, n_threads=options.threads, n_threads_batch=options.threads, no_perf=True
    )
    with (
        widened(options.model or demo_model(), options.vocabulary) as path,
        Model.load_from_file(path, ModelParams(n_gpu_layers=0)) as model,
        model.new_context(params) as context,
    ):
        seconds(context, 8, clock, json_schema=schema())  # the file comes into the cache, and the vocabulary is sorted
        print(
            f"{model.n_vocab} tokens, {options.threads} threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        for name, chain in CHAINS.items():
            ratios = []
            for _ in range(options.rounds):
                held, n = seconds(context, options.tokens, clock, json_schema=schema(), **chain)
                free, m = seconds(context, options.tokens, clock, **chain)
                ratios.append((free / m) / (held / n))
                print(
                    f"{name}: JSON {1e3 * held / n:6.2f} ms a token ({n}), any text {1e3 * free / m:6.2f} ms ({m})",
                    flush=True,
                )
            told = f"{statistics.median(ratios):.3f}, median of {len(ratios)} ({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"{name}: JSON : any text {told}")


if __name__ == "__main__":
    main()
