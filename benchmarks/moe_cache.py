"""A cache of experts against none: forecast, what llama.cpp counts, and the speed of both, in turn.

    python benchmarks/moe_cache.py [--model FILE] [--sizes 60MB 200MB 400MB] [--tokens 64] [--rounds 3] [--device NAME]

The experts are in plain host memory, everything else is on the device; without --device a worker process on this
machine stands in for one. Contexts without a cache and with each size generate the same text in turn; the forecast is
from a recorder that watched another one before.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import moebind
from moebind import ContextParams, Model, ModelParams, RoutingRecorder
from moebind._core.sizes import show_size
from moebind._core.tables import Column, markdown_table

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from demo_model import demo_model

PROMPT = "Once upon a time"
COLUMNS = [
    Column("cache", left=True), Column("experts it holds"), Column("forecast", ".1%"), Column("hit rate", ".1%"),
    Column("hits"), Column("misses"), Column("uploaded"), Column("tokens/s", ".1f"), Column("times as fast", ".2f"),
]  # fmt: skip


def _generate(context: moebind.Context, n_tokens: int) -> tuple[str, float]:
    """A text, and tokens per second without the prompt and the first token."""
    context.kv_cache_clear()
    pieces = context.generate(PROMPT, max_tokens=n_tokens, reuse_prefix=False)
    text = next(pieces).text
    begin, count = time.perf_counter(), 0
    for piece in pieces:
        text, count = text + piece.text, count + 1
    return text, count / (time.perf_counter() - begin)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a mixture-of-experts model; the demo model, if it is left out")
    parser.add_argument("--sizes", nargs="+", default=["60MB", "200MB", "400MB"])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", help="the name of a device of moebind.devices()")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # some sizes are there to show what happens below the cliff
    with ExitStack() as stack:
        device = given.device or stack.enter_context(moebind.loopback_device(n_threads=given.threads)).name
        [chosen] = [each for each in moebind.devices() if each.name == device]
        params = ModelParams(devices=(chosen,), use_extra_bufts=False).with_cpu_moe_all()
        model = stack.enter_context(Model.load_from_file(given.model or demo_model(), params))
        context_params = ContextParams(n_ctx=1024, n_threads=given.threads, n_threads_batch=given.threads)
        recorder = RoutingRecorder(order=True)
        with model.new_context(context_params.with_eval_callback(recorder)) as watched:
            expected, _ = _generate(watched, given.tokens)
        curve = recorder.cache_curve(given.sizes)
        contexts = {
            size: stack.enter_context(model.new_context(context_params.with_moe_cache_size(size)))
            for size in ["0", *given.sizes]
        }
        counted = {}
        speeds: dict[str, list[float]] = {size: [] for size in contexts}
        for _ in range(given.rounds):
            for size, context in contexts.items():
                text, speed = _generate(context, given.tokens)
                if text != expected:
                    raise SystemExit(f"with a cache of {size} the text is another")
                speeds[size].append(speed)
                counted.setdefault(size, context.moe_cache_stats())
        rows: list[list[object]] = []
        for size, stats in counted.items():
            speed = float(np.median(speeds[size]))
            share = float(np.median(np.divide(speeds[size], speeds["0"])))
            if stats is None:
                rows.append(["none", None, None, None, None, None, None, speed, share])
                continue
            found = [size, stats.n_slots, curve.at(size).hit_rate, stats.hit_rate, stats.hits, stats.misses]
            rows.append([*found, show_size(stats.bytes_uploaded), speed, share])
    print("\n".join(markdown_table(COLUMNS, rows)))
    print(f"\nThe experts of one token take {show_size(curve.token_bytes)}; {given.tokens} tokens, the same text.")


if __name__ == "__main__":
    main()
