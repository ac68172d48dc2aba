"""The time that a RoutingRecorder takes for each token, in interleaved pairs.

    python benchmarks/routing.py [MODEL.gguf] [--threads N] [--rounds N] [--tokens N]

Two contexts, one with a recorder, decode the same token in turn, so that whatever else the machine does slows both;
each round decodes TOKENS of them one by one, and as many in prompts of 32. The ratios are medians over all pairs.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np
from programs import arguments, demo_model

import moebind
from moebind import Batch, Context, ContextParams, Model, ModelParams, RoutingRecorder

PROMPT = 32


def seconds(context: Context, tokens: np.ndarray) -> float:
    """How long a decode takes."""
    batch = Batch.get_one(tokens)
    start = time.perf_counter()
    context.decode(batch)
    context.get_logits_ith(-1)
    return time.perf_counter() - start


def pairs(model: Model, params: list[ContextParams], tokens: np.ndarray, at_once: int) -> list[list[float]]:
    """Seconds for each ``at_once`` tokens, without a recorder and with one."""
    found = []
    with model.new_context(params[0]) as plain, model.new_context(params[1]) as recorded:
        for number, at in enumerate(range(0, len(tokens), at_once)):
            order = (plain, recorded) if number % 2 == 0 else (recorded, plain)
            took = {context: seconds(context, tokens[at : at + at_once]) for context in order}
            found.append([took[plain], took[recorded]])
    return found


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, "the demo model", 96).parse_args()
    n, threads = options.tokens, options.threads
    path = options.model or demo_model()
    plain = ContextParams(n_ctx=n, n_threads=threads, n_threads_batch=threads)
    recorder = RoutingRecorder()
    prompts: list[list[float]] = []
    steps: list[list[float]] = []
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0)) as model:
        tokens = np.random.default_rng(1).integers(0, model.n_vocab, n)
        params = [plain, plain.with_eval_callback(recorder)]
        pairs(model, params, tokens[:8], 1)  # the file comes into the cache
        for number in range(options.rounds):
            prompts += pairs(model, params, tokens, PROMPT)
            steps += pairs(model, params, tokens, 1)
            print(f"round {number + 1} of {options.rounds}", flush=True)
    layers = int((recorder.n_tokens > 0).sum())
    print(f"\n{Path(path).name}, {layers} layers with experts, {threads} threads, {os.cpu_count()} cores")
    print(f"llama.cpp {moebind.llama_cpp_version}, load {os.getloadavg()[0]:.1f}, {len(steps)} pairs")
    for what, rows in [("a decoded token", steps), (f"a prompt of {PROMPT}", prompts)]:
        ratio = statistics.median(recorded / without for without, recorded in rows)
        more = statistics.median(recorded - without for without, recorded in rows)
        base = statistics.median(without for without, _ in rows)
        print(f"{what}: {1e3 * base:.2f} ms, with a recorder x {ratio:.3f}, {1e6 * more:.0f} us more")


if __name__ == "__main__":
    main()
