"""Decode speed against llama.cpp's own llama-bench, on the same libraries, in interleaved pairs.

    python benchmarks/decode.py [MODEL.gguf] [--threads N] [--rounds N] [--tokens N]

Each round runs ``llama-bench -p 0 -n TOKENS`` and then ``Context.generate`` (greedy, with text) for as many tokens. On
a shared machine only the ratio means something; the median over the rounds is told, with the extremes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from pathlib import Path

from programs import arguments, demo_model, program

import moebind
from moebind import ContextParams, Model, ModelParams


def native_speed(bench: Path, model: str, threads: int, tokens: int) -> float:
    """Tokens per second of llama-bench."""
    command = [
        bench,
        "-m",
        model,
        "-p",
        "0",
        "-n",
        str(tokens),
        "-t",
        str(threads),
        "-r",
        "1",
        "-ngl",
        "0",
        "-o",
        "json",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def our_speed(model: Model, threads: int, tokens: int) -> tuple[float, float]:
    """Tokens per second of ``Context.generate``, and microseconds a token outside of llama_decode."""
    params = ContextParams(n_ctx=tokens + 16, n_threads=threads, n_threads_batch=threads)
    with model.new_context(params) as context:
        start = [model.token_bos or 0]
        stamps = [time.perf_counter() for _ in context.generate(start, max_tokens=tokens + 1)]
        elapsed, n = stamps[-1] - stamps[0], len(stamps) - 1
        decoding = context.timings()
        outside = elapsed * 1e6 - decoding.t_eval_ms * 1e3 * n / max(decoding.n_eval, 1)
        return n / elapsed, outside / n


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, "the demo model", 96).parse_args()
    if options.model is None:
        options.model = demo_model()
    bench = program("llama-bench")
    rows = []
    with Model.load_from_file(options.model, ModelParams(n_gpu_layers=0)) as model:
        our_speed(model, options.threads, 8)  # the file comes into the cache
        for _ in range(options.rounds):
            native = native_speed(bench, options.model, options.threads, options.tokens)
            ours, outside = our_speed(model, options.threads, options.tokens)
            rows.append((native, ours, ours / native, outside))
            print(f"llama-bench {native:7.2f}   moebind {ours:7.2f} tokens/s   ratio {ours / native:.3f}", flush=True)
    ratios = [row[2] for row in rows]
    name = Path(options.model).name
    print(f"\n{name}, {options.threads} threads, {os.cpu_count()} cores, {options.tokens} tokens")
    print(f"llama.cpp {moebind.llama_cpp_version}, load {os.getloadavg()[0]:.1f}")
    print(f"ratio {statistics.median(ratios):.3f}, median of {len(rows)} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"{statistics.median(row[3] for row in rows):.0f} us a token outside of llama_decode")


if __name__ == "__main__":
    main()
