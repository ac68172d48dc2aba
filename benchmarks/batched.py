"""Eight sequences at once against llama.cpp's own llama-batched-bench, on the same libraries, in interleaved pairs.

    python benchmarks/batched.py [MODEL.gguf] [--threads N] [--rounds N] [--tokens N] [--sequences N]

Each round runs ``llama-batched-bench -npp 16 -ntg TOKENS -npl 8`` and then ``Context.generate_many`` (greedy, with
text) for as many prompts and tokens; the time counts from the first tokens to the last, as there. On a shared machine
only the ratio means something; the median over the rounds is told, with the extremes.

The model should have no experts: llama-batched-bench decodes random tokens, which go to more of them than text does.
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

N_PROMPT = 16


def native_speed(bench: Path, model: str, threads: int, sequences: int, tokens: int) -> float:
    """Tokens per second of llama-batched-bench, all sequences together, without the prompts."""
    n_ctx = sequences * _room(tokens)
    counts = ["-c", n_ctx, "-npp", N_PROMPT, "-ntg", tokens, "-npl", sequences]
    command = [bench, "-m", model, *counts, "-t", threads, "-tb", threads, "-ngl", 0, "--output-format", "jsonl"]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return float(json.loads(lines[-1])["speed_tg"])


def our_speed(model: Model, threads: int, sequences: int, tokens: int) -> tuple[float, float]:
    """Tokens per second of ``generate_many``, and microseconds a batch outside of llama_decode."""
    params = ContextParams(n_threads=threads, n_threads_batch=threads, n_seq_max=sequences)
    # Counting is what models go on with: nobody ends before the others.
    texts = [", ".join(str(number) for number in range(start, start + 20)) for start in range(1, sequences + 1)]
    prompts = [model.str_to_token(text)[:N_PROMPT] for text in texts]
    with model.new_context(params.with_n_ctx(sequences * _room(tokens))) as context:
        pieces = context.generate_many(prompts, max_tokens=tokens + 1)
        for _ in range(sequences):
            next(pieces)
        context.reset_timings()
        start = time.perf_counter()
        n = sum(1 for _ in pieces)
        elapsed = time.perf_counter() - start
        if n != sequences * tokens:
            raise SystemExit(f"the model ended after {n} of {sequences * tokens} tokens: try fewer --tokens")
        decoding = context.timings()
        outside = elapsed * 1e6 - (decoding.t_eval_ms + decoding.t_p_eval_ms) * 1e3
        return n / elapsed, outside / tokens


def _room(tokens: int) -> int:
    """Tokens of a sequence; llama.cpp pads them to this."""
    return -(-(N_PROMPT + tokens + 1) // 256) * 256


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, "the dense SmolLM2", 48)
    parser.add_argument("--sequences", type=int, default=8)
    options = parser.parse_args()
    path = options.model or demo_model(dense=True)
    counts = (options.threads, options.sequences, options.tokens)
    bench = program("llama-batched-bench")
    rows = []
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0)) as model:
        our_speed(model, options.threads, options.sequences, 4)  # the file comes into the cache
        for _ in range(options.rounds):
            native = native_speed(bench, path, *counts)
            ours, outside = our_speed(model, *counts)
            rows.append((ours / native, outside))
            print(
                f"llama-batched-bench {native:7.2f}   moebind {ours:7.2f} tokens/s   ratio {ours / native:.3f}",
                flush=True,
            )
    ratios = [ratio for ratio, _ in rows]
    print(
        f"\n{Path(path).name}, {counts[0]} threads, {os.cpu_count()} cores, {counts[1]} sequences of {counts[2]} tokens"
    )
    print(f"llama.cpp {moebind.llama_cpp_version}, load {os.getloadavg()[0]:.1f}")
    print(f"ratio {statistics.median(ratios):.3f}, median of {len(rows)} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"{statistics.median(outside for _, outside in rows):.0f} us a batch outside of llama_decode")


if __name__ == "__main__":
    main()
