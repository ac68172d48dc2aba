"""What tests ask servers, and the processes that they look at."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil

from conftest import CPU
from moebind import ContextParams
from moebind.server import Server

#: Small enough to be ready at once; one thread, as everywhere in the tests.
CONTEXT = ContextParams(n_ctx=256, n_ubatch=64, n_threads=1, n_threads_batch=1, swa_full=False, kv_unified=True)
#: A start without what only later requests gain from.
EXTRA = ("--no-warmup", "--log-verbosity", "4")
#: The arguments of small servers.
SMALL_SERVER: dict[str, Any] = {"model_params": CPU, "context_params": CONTEXT, "extra": EXTRA}
#: Seconds that anything may take on a machine that is busy otherwise.
PATIENCE = 120.0


class Answer(NamedTuple):
    """The status of an answer, its headers, and what it says."""

    status: int
    headers: Mapping[str, str]
    said: Any


def ask(url: str, path: str, body: object = None, method: str | None = None, **headers: str) -> Answer:
    """Ask a server; a body is sent as JSON. Headers have underscores for hyphens."""
    there = urlsplit(url)
    connection = http.client.HTTPConnection(str(there.hostname), int(there.port or 0), timeout=PATIENCE)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method or ("GET" if body is None else "POST"), path, data, sent)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    kind = answer.getheader("Content-Type") or ""
    said = json.loads(text) if kind.startswith("application/json") and text else text
    return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, said)


def complete(url: str, model: str | None = None, n_predict: int = 4, **headers: str) -> Answer:
    """Ask for a few tokens, the likeliest ones."""
    body = {"prompt": "it is", "n_predict": n_predict, "temperature": 0, "return_tokens": True}
    return ask(url, "/completion", body if model is None else {**body, "model": model}, **headers)


def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def family(server: Server) -> list[psutil.Process]:
    """llama-server, its keeper, and the processes of its models."""
    assert server.pid is not None
    main = psutil.Process(server.pid)
    keeper = main.parent()
    assert keeper is not None
    return [keeper, main, *main.children(recursive=True)]


@contextmanager
def gone_afterwards(server: Server) -> Iterator[list[psutil.Process]]:
    """The processes of a server, none of which is left afterwards."""
    processes = family(server)
    del server  # it may be that nobody has it any more
    yield processes
    until(lambda: not any(map(is_there, processes)))


def is_there(process: psutil.Process) -> bool:
    """Whether it runs. Unlike psutil's waiting, this takes no exit status away from who started it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
