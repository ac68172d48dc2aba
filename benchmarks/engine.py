"""Engines: throughput beside llama-batched-bench, and what those who wait see while a long prompt comes.

    python benchmarks/engine.py [MODEL.gguf] [--threads N] [--rounds N] [--tokens N] [--sequences N ...] [--prompt N]

Throughput: a round is ``llama-batched-bench -npp 16 -ntg TOKENS -npl N``, then an ``Engine`` with N sequences. Each
of them writes so many tokens (greedy, with text), read by N coroutines. As there, the time counts from when all prompts
are computed to the last token.

Latency: three texts are being written when a prompt of ``--prompt`` tokens comes. The rows are the median and the
longest pause between two pieces of a running text, while that prompt is computed, and how long its first token takes;
with the prompt in parts of several sizes, and whole. The pauses before it came are beside them.

Share: of the processor's time that an engine and its readers take, the part that is in llama_decode, with one thread.
What else runs on the machine hardly changes it. The rest is all that an engine can lose.

On a shared machine only ratios within a round mean something. The model should have no experts: llama-batched-bench
decodes random tokens, which go to more of them than text does.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from programs import arguments, demo_model
from speed_settings import Settings
from speed_sides import FailedError, Sides

import moebind
from moebind import ContextParams, Engine, Model, ModelParams, Sampler
from moebind.context.decode import Decoding

#: Tokens of each prompt; llama-batched-bench is run with as many.
N_PROMPT = 16


def endless(model: Model) -> Sampler:
    """The likeliest token that does not end the text."""
    ends = {token: -float("inf") for token in range(model.n_vocab) if model.is_eog_token(token)}
    return Sampler.chain([Sampler.logit_bias(ends), Sampler.greedy()])


@contextmanager
def counted() -> Iterator[list[float]]:
    """The seconds of the processor's time that the computing thread spends in each batch's llama_decode."""
    seconds, compute = list[float](), Decoding._compute

    def counting(*arguments: Any) -> None:
        begun = time.thread_time()
        compute(*arguments)
        seconds.append(time.thread_time() - begun)

    Decoding._compute = counting  # type: ignore[method-assign, assignment]
    try:
        yield seconds
    finally:
        Decoding._compute = compute  # type: ignore[method-assign]


def our_speed(model: Model, threads: int, sequences: int, tokens: int) -> tuple[float, float]:
    """Tokens per second, all sequences together, from when the last has its first; and the processor's seconds."""
    n_ctx = sequences * -(-(N_PROMPT + tokens + 1) // 256) * 256
    params = ContextParams(n_ctx=n_ctx, n_seq_max=sequences, n_threads=threads, n_threads_batch=threads)
    # Counting is what models go on with: nobody ends before the others.
    texts = [", ".join(str(number) for number in range(start, start + 20)) for start in range(1, sequences + 1)]
    prompts = [model.str_to_token(text)[:N_PROMPT] for text in texts]
    times, spent = list[float](), list[float]()

    async def read(prompt: object) -> float:
        async with engine.agenerate(prompt, max_tokens=tokens + 1) as pieces:  # type: ignore[arg-type]
            async for piece in pieces:
                times.append(time.perf_counter())
                if piece.index == 0:
                    begun = times[-1]
                    spent.append(time.process_time())
        return begun

    async def all_of_them() -> float:
        return max(await asyncio.gather(*map(read, prompts)))

    with Engine(model, params, prompt_chunk=sequences * N_PROMPT, n_ahead=tokens + 1) as engine:
        begun = asyncio.run(all_of_them())
        spent.append(time.process_time())
    if len(times) != sequences * (tokens + 1):
        raise SystemExit(f"the model ended after {len(times)} tokens: try fewer --tokens")
    return sum(each > begun for each in times) / (times[-1] - begun), spent[-1] - spent[-2]


def native_speed(model: str, threads: int, sequences: int, tokens: int) -> float:
    """Tokens per second of llama-batched-bench, all sequences together, without the prompts."""
    of_it = Settings("", model, "", "", "", threads=threads, sequences=sequences, tokens=tokens)
    with Sides(of_it, with_other=False) as sides:
        try:
            return sides.ask("llama-batched-bench", "")["batched_bench"]
        except FailedError as error:
            raise SystemExit(str(error)) from None


def pauses(model: Model, threads: int, n_prompt: int, chunk: int) -> tuple[float, float, float, float]:
    """Seconds: the median pause before the prompt comes; then median and longest, and until the prompt's first token"""
    params = ContextParams(n_ctx=n_prompt + 2048, n_seq_max=4, n_threads=threads, n_threads_batch=threads)
    arrived = model.str_to_token("The quick brown fox jumps over the lazy dog. " * n_prompt)[:n_prompt]
    before, during = list[float](), list[float]()
    begins, ends = threading.Event(), threading.Event()

    def read(pieces: moebind.Pieces) -> None:
        last = time.perf_counter()
        for piece in pieces:
            now = time.perf_counter()
            if piece.index >= 2:
                (during if begins.is_set() else before).append(now - last)
            last = now
            if ends.is_set():
                return

    with Engine(model, params.with_kv_unified(True), prompt_chunk=chunk) as engine:
        texts = [engine.generate(f"Story {number}: once", sampler=endless(model)) for number in range(3)]
        readers = [threading.Thread(target=read, args=(text,)) for text in texts]
        for each in readers:
            each.start()
        while len(before) < 30:
            time.sleep(0.01)
        begins.set()
        asked = time.perf_counter()
        next(engine.generate(arrived, max_tokens=2))
        took = time.perf_counter() - asked
        # Now it is the running texts' turn once more: the pause that the prompt made is over.
        n_known = len(during)
        while len(during) < n_known + 3:
            time.sleep(0.01)
        ends.set()
        for each in readers:
            each.join()
        for each in texts:
            each.close()
    return statistics.median(before), statistics.median(during), max(during), took


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, "the dense SmolLM2", 48)
    parser.add_argument("--sequences", type=int, nargs="*", default=[8, 16])
    parser.add_argument("--prompt", type=int, default=4000)
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 64, 256, 8192])
    options = parser.parse_args()
    path = options.model or demo_model(dense=True)
    print(f"{path}\n{options.threads} threads, {os.cpu_count()} cores, llama.cpp {moebind.llama_cpp_version}")
    print(f"load {os.getloadavg()[0]:.1f}\n")
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0)) as model:
        our_speed(model, options.threads, 2, 4)  # the file comes into the cache
        for sequences in options.sequences:
            ratios = []
            with counted() as seconds:
                _, spent = our_speed(model, 1, sequences, options.tokens)
            share = sum(seconds[-options.tokens :]) / spent
            print(f"{sequences:3} sequences: {share:.4f} of the processor's time is in llama_decode", flush=True)
            for _ in range(options.rounds):
                native = native_speed(path, options.threads, sequences, options.tokens)
                ours, _ = our_speed(model, options.threads, sequences, options.tokens)
                ratios.append(ours / native)
                print(
                    f"{sequences:3} sequences: llama-batched-bench {native:7.2f}, Engine {ours:7.2f} tokens/s", end=""
                )
                print(f", ratio {ratios[-1]:.3f}", flush=True)
            if not ratios:
                continue
            middle = statistics.median(ratios)
            print(f"ratio {middle:.3f}, median of {len(ratios)} ({min(ratios):.3f} to {max(ratios):.3f})\n")
        n_prompt = min(options.prompt, model.n_ctx_train - 64)
        print(f"three running texts, and a prompt of {n_prompt} tokens; milliseconds")
        print("chunk   pause before   median pause   longest pause   first token   (without cutting: the last row)")
        for chunk in options.chunks:
            row = [1000 * each for each in pauses(model, options.threads, n_prompt, chunk)]
            print("{:5}   {:12.0f}   {:12.0f}   {:13.0f}   {:11.0f}".format(chunk, *row), flush=True)


if __name__ == "__main__":
    main()
