"""Engines: throughput beside llama-batched-bench, and what those who wait see.

    python benchmarks/engine.py [MODEL.gguf] [--threads N] [--rounds N] [--most N] [--write-docs] ...

Throughput: a round is ``llama-batched-bench -npp 16 -ntg TOKENS -npl N``, then an ``Engine`` with N sequences, or the
other way round. Each of them writes so many tokens (greedy, with text), read by N coroutines. As there, the time counts
from when all prompts are computed to the last token. Rounds go on, up to --most, until the interval in which the median
of the ratios lies, but for a chance of 5 %, says whether the target is reached.

Share: of the processor's time that an engine and its readers take, the part that is in llama_decode, with one thread.
What else runs on the machine hardly changes it. The rest is all that an engine can lose.

First token: how long a request of 30 tokens waits for it while 7 other texts are being written, and while none is.

Pauses: three texts are being written when a prompt of ``--prompt`` tokens comes. The rows are the median and the
longest pause between two pieces of a running text, while that prompt is computed, and how long its first token takes;
with the prompt in parts of several sizes, and whole. The pauses before it came are beside them.

With --write-docs, each result goes into docs/engine.json as soon as it is there, and from that into the tables of
docs/engine.md; with --rounds 0 without measuring. On a shared machine only ratios within a round mean something. The
model should have no experts: llama-batched-bench decodes random tokens, which go to more of them than text does.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine_report
import speed_report
import speed_rows
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
def counted() -> Iterator[list[tuple[float, float]]]:
    """For each batch, seconds of the processor: what all threads had spent before it; what its llama_decode takes."""
    batches, compute = list[tuple[float, float]](), Decoding._compute

    def counting(*arguments: Any) -> None:
        before, begun = time.process_time(), time.thread_time()
        compute(*arguments)
        batches.append((before, time.thread_time() - begun))

    Decoding._compute = counting  # type: ignore[method-assign, assignment]
    try:
        yield batches
    finally:
        Decoding._compute = compute  # type: ignore[method-assign]


def our_speed(model: Model, threads: int, sequences: int, tokens: int) -> tuple[float, float]:
    """Tokens per second, all sequences together, from when the last has its first; the process's time at the end."""
    n_ctx = sequences * -(-(N_PROMPT + tokens + 1) // 256) * 256
    params = ContextParams(n_ctx=n_ctx, n_seq_max=sequences, n_threads=threads, n_threads_batch=threads)
    # Counting is what models go on with: nobody ends before the others.
    texts = [", ".join(str(number) for number in range(start, start + 20)) for start in range(1, sequences + 1)]
    prompts = [model.str_to_token(text)[:N_PROMPT] for text in texts]
    times = list[float]()

    async def read(prompt: object) -> float:
        async with engine.agenerate(prompt, max_tokens=tokens + 1) as pieces:  # type: ignore[arg-type]
            async for piece in pieces:
                times.append(time.perf_counter())
                if piece.index == 0:
                    begun = times[-1]
        return begun

    async def all_of_them() -> float:
        return max(await asyncio.gather(*map(read, prompts)))

    with Engine(model, params, prompt_chunk=sequences * N_PROMPT, n_ahead=tokens + 1) as engine:
        begun = asyncio.run(all_of_them())
        spent = time.process_time()
    if len(times) != sequences * (tokens + 1):
        raise SystemExit(f"the model ended after {len(times)} tokens: try fewer --tokens")
    return sum(each > begun for each in times) / (times[-1] - begun), spent


def native_speed(model: str, threads: int, sequences: int, tokens: int) -> float:
    """Tokens per second of llama-batched-bench, all sequences together, without the prompts."""
    of_it = Settings("", model, "", "", "", threads=threads, sequences=sequences, tokens=tokens)
    with Sides(of_it, with_other=False) as sides:
        return sides.ask("llama-batched-bench", "")["batched_bench"]


def first_token(model: Model, threads: int, running: int) -> float:
    """Seconds until the first token of a short request, while so many other texts are being written."""
    params = ContextParams(n_ctx=256 * (running + 1), n_seq_max=running + 1, n_threads=threads, n_threads_batch=threads)
    text = "Please tell me in a few words what the weather was like in the mountains on the first day of last year. "
    request = model.str_to_token(text * 3)[: engine_report.SHORT]
    counts = [0] * running

    async def write(number: int) -> None:
        async with engine.agenerate(f"Story {number}: once", sampler=endless(model), max_tokens=200) as pieces:
            async for _ in pieces:
                counts[number] += 1

    async def wait() -> float:
        # What a context does only once is over before.
        await engine.agenerate("The first", max_tokens=3).complete()
        writers = [asyncio.create_task(write(number)) for number in range(running)]
        while running and min(counts) < 3 and not any(each.done() for each in writers):
            await asyncio.sleep(0.01)
        asked = time.perf_counter()
        async with engine.agenerate(request, max_tokens=2) as pieces:
            async for _ in pieces:
                took = time.perf_counter() - asked
                break
        if any(each.done() for each in writers):
            raise FailedError("a text had ended before")
        for each in writers:
            each.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        return took

    with Engine(model, params) as engine:
        return asyncio.run(wait())


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


@dataclass(frozen=True)
class Asked:
    """Who measures, as ``speed_rows.measure`` asks."""

    path: str
    model: Model
    threads: int
    tokens: int

    def ask(self, side: str, work: str) -> dict[str, float]:
        """Measure once."""
        number = int(work)
        if side == "llama-batched-bench":
            return {"batched_bench": native_speed(self.path, self.threads, number, self.tokens)}
        if side == "engine":
            return {"engine": our_speed(self.model, self.threads, number, self.tokens)[0]}
        if side == "share":
            with counted() as batches:
                _, spent = our_speed(self.model, 1, number, self.tokens)
            # From the first batch that counts, not from when a reader saw what was before it: that may be later.
            counting = batches[-self.tokens :]
            return {"inside": sum(inside for _, inside in counting), "all": spent - counting[0][0]}
        return {f"first_{number}_ms": 1000 * first_token(self.model, self.threads, number)}


def conditions(path: str, threads: int) -> str:
    """With what it is measured, as a sentence."""
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    about = f"{day}, {os.path.basename(path)}, {threads} thread(s), {os.cpu_count()} cores"
    return f"{about}, llama.cpp {moebind.llama_cpp_version}"


def options(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What is to be done."""
    parser = arguments(__doc__, "the dense SmolLM2", 48)
    parser.add_argument("--most", type=int, default=21, help="rounds at most (default 21)")
    parser.add_argument("--sequences", type=int, nargs="*", default=list(engine_report.SEQUENCES))
    parser.add_argument("--prompt", type=int, default=4000)
    parser.add_argument("--chunks", type=int, nargs="*", default=[16, 64, 256, 8192], help="none: no long prompt")
    parser.add_argument("--write-docs", action="store_true", help="docs/engine.json, and docs/engine.md from it")
    chosen = parser.parse_args(given)
    unknown = sorted(set(chosen.sequences) - set(engine_report.SEQUENCES))
    if chosen.write_docs and unknown:
        known = " and ".join(map(str, engine_report.SEQUENCES))
        parser.error(f"--write-docs: the page has {known} sequences, and no place for {unknown[0]}; leave one out")
    return chosen


def main(
    given: Sequence[str] | None = None, results: Path = engine_report.RESULTS, page: Path = engine_report.PAGE
) -> None:
    """Measure, print, and write."""
    chosen = options(given)
    found = engine_report.read(results)

    def keep() -> None:
        if chosen.write_docs:
            engine_report.write(results, page, found)

    if chosen.rounds > 0:
        path = chosen.model or demo_model(dense=True)
        with Model.load_from_file(path, ModelParams(n_gpu_layers=0)) as model:
            our_speed(model, chosen.threads, 2, 4)  # the file comes into the cache
            asked = Asked(path, model, chosen.threads, chosen.tokens)
            for group in engine_report.groups(chosen.sequences):
                load = os.getloadavg()[0]
                measured = speed_rows.measure(group, asked, chosen.rounds, chosen.most)
                for row in group.rows:
                    print("  ".join(str(cell) for cell in speed_report.cells(group, row, measured)), flush=True)
                found["groups"][group.name] = {
                    "conditions": conditions(path, chosen.threads),
                    "load": round(load, 1),
                    "rounds": measured.rounds,
                    "failures": measured.failures,
                }
                keep()
            if chosen.chunks:
                found["pauses"] = with_long_prompt(asked, min(chosen.prompt, model.n_ctx_train - 64), chosen.chunks)
                keep()
    keep()


def with_long_prompt(asked: Asked, n_prompt: int, chunks: Sequence[int]) -> dict[str, Any]:
    """The pauses that a long prompt makes, for parts of each size."""
    about, rows = f"{conditions(asked.path, asked.threads)}, load {os.getloadavg()[0]:.0f} before", []
    for chunk in chunks:
        values = [1000 * each for each in pauses(asked.model, asked.threads, n_prompt, chunk)]
        names = ("before", "median", "longest", "first")
        rows.append(dict(zip(names, values, strict=True)) | {"chunk": chunk, "whole": chunk >= n_prompt})
        print(f"a prompt of {n_prompt} tokens: {rows[-1]}", flush=True)
    return {"conditions": about, "prompt": n_prompt, "rows": rows}


if __name__ == "__main__":
    main()
