"""Asynchronous generations: which of them run, and a gate that holds one in the middle."""

from __future__ import annotations

import asyncio
import threading
import time

from moebind import Sampler


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "moebind generation"]


def gone() -> None:
    """Wait until no thread generates, until pytest's own limit."""
    while threads():
        time.sleep(0.002)


class Gate:
    """A sampler that counts, and after so many tokens waits for ``open`` before each."""

    def __init__(self, after: int = 0) -> None:
        self.open, self.reached, self.n_tokens, self._after = threading.Event(), threading.Event(), 0, after

    def __call__(self, _candidates: object) -> None:
        self.n_tokens += 1
        if self.n_tokens > self._after:
            self.reached.set()
            self.open.wait()

    def sampler(self) -> Sampler:
        return Sampler.chain([Sampler.from_callable(self), Sampler.greedy()])

    async def is_reached(self) -> None:
        while not self.reached.is_set():
            await asyncio.sleep(0.001)
