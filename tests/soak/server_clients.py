"""Clients of a server, several at once, of which some go away; and what its processes hold."""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import psutil
from held import Held
from serving import PATIENCE, ask, family

from moebind.server import Server

#: How many ask at once, which is more than a model answers side by side.
N_CLIENTS = 6


def _leave(url: str, body: dict[str, object], n_lines: int) -> None:
    """Ask for a stream, read some lines of it, and go away."""
    there = urlsplit(url)
    connection = http.client.HTTPConnection(str(there.hostname), int(there.port or 0), timeout=PATIENCE)
    try:
        connection.request(
            "POST", "/v1/completions", json.dumps({**body, "stream": True, "n_predict": 64}),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        for _ in range(n_lines):
            answer.readline()
    finally:
        connection.close()


def at_once(url: str, models: list[str], seed: int) -> None:
    """Ask from several threads at once, each of them for one of the models in turn; of each, two texts."""
    chance = random.Random(seed)
    failed: list[BaseException] = []

    def client(number: int, leaves: int | None) -> None:
        try:
            for turn in range(2):
                # Few of them, as the server keeps what it has computed.
                prompt = f"{number} {turn}"
                body = {"model": models[number % len(models)], "prompt": prompt, "n_predict": 4, "ignore_eos": True}
                if leaves is not None:
                    _leave(url, body, leaves)
                else:
                    answer = ask(url, "/v1/completions", body)
                    assert answer.status == 200, answer
        except BaseException as error:  # told below
            failed.append(error)

    goes = [chance.randrange(8) if number % 3 == 2 else None for number in range(N_CLIENTS)]
    threads = [threading.Thread(target=client, args=each) for each in enumerate(goes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def look_at(server: Server) -> dict[str, Held]:
    """What each of its processes holds: its keeper, llama-server, and that of each model in memory, by the model."""
    found = {}
    for role, process in _roles(server):
        with suppress(psutil.NoSuchProcess):  # it is just ending
            found[role] = Held.by(process)
    return found


def _roles(server: Server) -> Iterator[tuple[str, psutil.Process]]:
    keeper, main, *others = family(server)
    yield "keeper", keeper
    yield "server", main
    for process in others:
        with suppress(psutil.NoSuchProcess):
            yield from ((name.name, process) for name in server.models if name.name in process.cmdline())
