"""What a common prefix saves in ``Context.generate_many``, against as many prompts of the same length without one.

    python benchmarks/prefix.py [MODEL.gguf] [--threads N] [--rounds N] [--tokens N] [--prompts N] [--prefix N]

Each round generates for prompts that begin with the same PREFIX tokens, then for prompts of which each begins
otherwise: with caches of their own for the sequences, and with one for all. On a shared machine only the ratio means
something; the median over the rounds is told, with the extremes.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from programs import arguments, demo_model

import moebind
from moebind import Context, ContextParams, Model, ModelParams

N_OWN, N_SEQUENCES = 16, 4


def seconds(context: Context, prompts: list[NDArray[np.int32]], tokens: int) -> tuple[float, int]:
    """How long it takes to generate for these prompts, and how many of their tokens were computed."""
    start = time.perf_counter()
    completions = context.generate_many(prompts, max_tokens=tokens).complete()
    elapsed = time.perf_counter() - start
    return elapsed, sum(each.usage.prompt_tokens - each.usage.cached_tokens for each in completions)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, "the demo model", 8)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--prefix", type=int, default=200)
    options = parser.parse_args()
    path = options.model or demo_model()
    random = np.random.default_rng(1)
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0)) as model:
        words = np.arange(1000, 2000)

        def some(n: int) -> NDArray[np.int32]:
            return random.choice(words, n).astype(np.int32)

        prefix = some(options.prefix)
        alike = [np.concatenate([prefix, some(N_OWN)]) for _ in range(options.prompts)]
        others = [some(options.prefix + N_OWN) for _ in range(options.prompts)]
        room = -(-(options.prefix + N_OWN + options.tokens) // 256) * 256  # llama.cpp pads to this
        params = ContextParams(n_threads=options.threads, n_threads_batch=options.threads, n_seq_max=N_SEQUENCES)
        for unified in (False, True):
            ratios = []
            with model.new_context(params.with_n_ctx(N_SEQUENCES * room).with_kv_unified(unified)) as context:
                seconds(context, others[:1], 1)  # the file comes into the cache
                for _ in range(options.rounds):
                    shared, n_shared = seconds(context, alike, options.tokens)
                    apart, n_apart = seconds(context, others, options.tokens)
                    ratios.append(shared / apart)
                    print(f"shared {shared:6.2f} s   apart {apart:6.2f} s   ratio {ratios[-1]:.3f}", flush=True)
            kind = "one cache" if unified else "caches of their own"
            print(f"{kind}: ratio {statistics.median(ratios):.3f}, median of {len(ratios)}", end=" ")
            print(f"({min(ratios):.3f} to {max(ratios):.3f}); {n_shared} tokens of prompts, not {n_apart}\n")
    print(
        f"{Path(path).name}, {options.threads} threads, {os.cpu_count()} cores, {options.prompts} prompts of", end=" "
    )
    print(f"{options.prefix} + {N_OWN} tokens and {options.tokens} more each, {N_SEQUENCES} sequences")
    print(f"llama.cpp {moebind.llama_cpp_version}, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
