"""Clients of engines, in threads and in coroutines, of which many go away in the middle."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moebind
from moebind import AbortedError, ClosedError, Draft, Engine, Model, Sampler

MESSAGES = [{"role": "user", "content": "hello there"}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
#: How a reader ends: with the whole text, or before.
LEAVES = ["", "", "closes", "drops", "never asks", "is cancelled"]


class Raised(Exception):
    """What samplers raise here."""


def _raises(_candidates: object) -> None:
    raise Raised


def _options(chance: random.Random) -> dict[str, Any]:
    """What is asked for besides a text."""
    options: dict[str, Any] = {"max_tokens": 12, "priority": chance.randrange(3)}
    kind = chance.randrange(5)
    if kind == 0:
        options |= {"temperature": 0.8, "top_k": 20, "repeat_penalty": 1.1, "seed": 1, "stop": ["never this"]}
    elif kind == 1:
        options |= {"json_schema": SCHEMA, "temperature": 0.5, "seed": 1}
    elif kind == 2:
        options["logprobs"] = 3
    elif kind == 3 and chance.random() < 0.3:
        options["sampler"] = Sampler.chain([Sampler.from_callable(_raises), Sampler.greedy()])
    if chance.random() < 0.4:
        options["speculative"] = chance.choice(["ngram-simple", "ngram-mod", "auto", None])
    return options


def _prompt(chance: random.Random) -> list[int]:
    """Some begin alike."""
    return [1, *range(3, 3 + chance.choice([4, 30])), chance.randrange(3, 99), *range(20, 20 + chance.randrange(60))]


async def _client(engine: Engine, chance: random.Random, leaves: str) -> None:
    """One coroutine's text or chat."""
    await asyncio.sleep(chance.random() / 100)
    stream: Any
    if chance.random() < 0.3:
        stream = engine.achat(MESSAGES, template="chatml", max_tokens=12)
        pieces = stream.deltas() if leaves == "drops" else stream
    else:
        stream = pieces = engine.agenerate(_prompt(chance), **_options(chance))
    if leaves == "never asks":
        return
    if leaves == "":
        await stream.complete()
        return
    n = chance.randrange(8)
    try:
        async for _ in pieces:
            if n == 0:
                break
            n -= 1
    finally:
        if leaves == "closes":
            await stream.aclose()


async def _clients(engine: Engine, chance: random.Random, n: int) -> None:
    """Coroutines at once; none of them leaves a task or an exception that is not expected."""
    tasks = []
    for _ in range(n):
        leaves = chance.choice(LEAVES)
        task = asyncio.ensure_future(_client(engine, random.Random(chance.random()), leaves))
        if leaves == "is cancelled":
            asyncio.get_running_loop().call_later(chance.random() / 50, task.cancel)
        tasks.append(task)
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, BaseException) and not isinstance(end, EXPECTED):
            raise end
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, left


#: What clients see of an engine that is aborted or closed, and of their own samplers.
EXPECTED = (asyncio.CancelledError, AbortedError, ClosedError, Raised)


def _reader(engine: Engine, chance: random.Random) -> None:
    """One thread's texts."""
    for _ in range(3):
        leaves = chance.choice(LEAVES)
        try:
            pieces = engine.generate(_prompt(chance), **_options(chance))
            if leaves == "":
                pieces.complete()
            elif leaves != "never asks":
                for piece in pieces:
                    if piece.index >= 4:
                        break
                if leaves == "closes":
                    pieces.close()
        except EXPECTED:
            pass


def at_once(engine: Engine, chance: random.Random, n_coroutines: int = 12, n_threads: int = 2) -> None:
    """Ask an engine from an event loop and from threads; now and then everything is aborted.

    What a thread raised that it should not have is raised here.
    """
    failed: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # told below
            failed.append(error)

    seeds = [random.Random(chance.random()) for _ in range(n_threads + 1)]
    works: list[Callable[[], None]] = [lambda its=its: _reader(engine, its) for its in seeds[1:]]  # type: ignore[misc]
    works.append(lambda: asyncio.run(_clients(engine, seeds[0], n_coroutines)))
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    if chance.random() < 0.3:
        time.sleep(chance.random() / 20)
        engine.abort()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def short_lived(path: Path, model: Model, params: moebind.ContextParams, chance: random.Random) -> None:
    """Make an engine that drafts, and close it while it is asked, or leave it to the collector."""
    drafts = chance.choice([None, "ngram-simple", Draft(str(path), model.params)])
    engine = Engine(model, params, speculative=drafts, n_ahead=8)
    readers = [engine.generate(_prompt(chance), max_tokens=24) for _ in range(params.n_seq_max + 2)]
    try:
        for reader in readers[: chance.randrange(len(readers))]:
            next(reader, None)
    finally:
        if chance.random() < 0.7:
            engine.close()
