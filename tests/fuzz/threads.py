"""Everything that threads do at once with one model, for a while: for ThreadSanitizer, which sees what they share.

    python tools/sanitize.py thread tests/fuzz/threads.py --seconds 90

They do what the threads of forks.py do, alone and with engines and coroutines, and compute with a pool of several
threads, which another one stops.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import forks
import tiny

from moebind import AbortedError, Batch, ContextParams, Model, ThreadPool


def _pool(model: Model, chance: random.Random) -> None:
    params = ContextParams(n_ctx=128, n_threads=3, n_threads_batch=3)
    with model.new_context(params) as context, ThreadPool(3) as pool:
        context.attach_threadpool(pool)
        stops = threading.Timer(chance.random() / 20, context.abort)
        stops.start()
        try:
            for _ in range(4):
                context.kv_cache_clear()
                context.decode(Batch.get_one(forks.TOKENS))
        except AbortedError:
            pass
        stops.join()
        context.detach_threadpool()


DOES = {**forks.DOES, "pool": _pool}


def main(arguments: list[str] | None = None) -> int:
    """Run the threads; the exit status tells whether one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    log = logging.getLogger("moebind")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    end = time.monotonic() + chosen.seconds
    done: Counter[str] = Counter()
    failed: list[str] = []

    def work(model: Model, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end and not failed:
            name = chance.choice(sorted(DOES))
            try:
                DOES[name](model, chance)
            except Exception:
                failed.append(f"{name}: {traceback.format_exc()}")
            done[name] += 1

    with tempfile.TemporaryDirectory() as folder:
        path = tiny.write(Path(folder) / "tiny.gguf", tiny.Shape(n_expert=4))
        with Model.load_from_file(path, forks.CPU) as model:
            seeds = range(chosen.seed, chosen.seed + chosen.threads)
            threads = [threading.Thread(target=work, args=(model, seed)) for seed in seeds]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    print(*failed, sep="\n", end="\n" if failed else "")
    print(f"{sum(done.values())} times one of {len(done)} things in {len(threads)} threads: {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
