"""How fast this machine reads its memory, measured."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.native import lib
from moebind.backend.host_memory import host_memory

__all__ = ["host_bandwidth"]

#: Bytes that are read: far more than caches hold, and no more than a quarter of what is free.
SIZE, FREE_SHARE = 2**29, 4
#: How often they are read; the fastest counts.
PASSES = 8


@explained()
def host_bandwidth(n_threads: SupportsIndex | None = None) -> float:
    """Measure how many bytes can be read from this machine's memory in a second, for :meth:`Plan.speed`.

    Reads half a gigabyte several times, which takes about a second, and returns the fastest. What else runs meanwhile
    makes it slower.

    Parameters
    ----------
    n_threads
        How many threads read. None: as many as compute a token by default, one per physical core.

    Returns
    -------
    float
        Bytes per second.

    Raises
    ------
    TypeError, ValueError
        If ``n_threads`` is no number of threads.
    MemoryError
        If half a gigabyte, or a quarter of what is free, cannot be taken.

    Examples
    --------
    >>> moebind.host_bandwidth(n_threads=1) > 10**8
    True
    """
    if n_threads is None:
        threads = max(1, min(lib.moebind_default_n_threads(), len(os.sched_getaffinity(0))))
    else:
        threads = checks.integer("n_threads", n_threads, 1, checks.THREADS_MAX)
    numbers = min(SIZE, host_memory().free // FREE_SHARE) // np.dtype(np.float32).itemsize
    parts = np.array_split(np.empty(max(numbers, threads), np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.fill(1.0), parts))  # until it is written, there is no memory behind it
        seconds = []
        for _ in range(PASSES):
            start = time.perf_counter()
            list(pool.map(np.maximum.reduce, parts))  # among the fastest of numpy's reductions, and without the GIL
            seconds.append(time.perf_counter() - start)
    return sum(part.nbytes for part in parts) / min(seconds)
