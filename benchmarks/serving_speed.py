"""``moebind serve`` against plain llama-server of the same build: many clients that stream, in interleaved rounds.

    python benchmarks/serving_speed.py [MODEL.gguf] [--threads N] [--rounds N] [--tokens N] [--clients N] [--program P]

In each round the clients ask one server, all at once, for as many tokens each, and then the other; which is first
changes from round to round, and the one that is not asked is idle. Told are, as medians over the rounds: how many
tokens all clients got a second, how long one waited for its first, what a token took of the processors, and the ratios
of these, with the extremes. On a shared machine only the ratios mean something; that of the processors' time means
most, with one thread. With ``--program``, the other one is that llama-server, such as one that was compiled otherwise.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
from programs import arguments, demo_model

from moebind import ContextParams
from moebind.server import Server
from moebind.server.address import Address
from moebind.server.isolation import environment
from moebind.server.process import program


class Round(NamedTuple):
    """A round: tokens a second of all clients together, seconds to the first token, and of processors for a token."""

    speed: float
    wait: float
    cpu: float


class Asked(NamedTuple):
    """A server that is asked: its address, and its process."""

    url: str
    pid: int


@contextmanager
def plain(path: str, model: str, threads: int, clients: int, n_ctx: int) -> Iterator[Asked]:
    """llama-server as it is."""
    address = Address.free("127.0.0.1", 0)
    counts = ["-c", n_ctx, "-np", clients, "-t", threads, "-tb", threads, "--port", address.port]
    command = [str(each) for each in (path, "-m", model, *counts, "--kv-unified")]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not answers(address.port):
                if process.poll() is not None:
                    raise SystemExit(f"{path} ended: {process.returncode}")
                time.sleep(0.1)
            yield Asked(address.url, process.pid)
        finally:
            process.kill()


def answers(port: int) -> bool:
    """Whether it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def stream(url: str, prompt: str, tokens: int) -> tuple[int, float]:
    """Ask for text, and read it as it comes: how many tokens, and seconds to the first."""
    there = urlsplit(url)
    connection = http.client.HTTPConnection(str(there.hostname), int(there.port or 0), timeout=600)
    body = {"prompt": prompt, "n_predict": tokens, "stream": True, "ignore_eos": True, "temperature": 0}
    start = time.perf_counter()
    first, count = 0.0, 0
    try:
        connection.request("POST", "/completion", json.dumps({**body, "cache_prompt": False}))
        for line in connection.getresponse():
            if line.startswith(b"data: "):
                first = first or time.perf_counter() - start
                count = int(json.loads(line[6:]).get("tokens_predicted", count))  # the last one tells
    finally:
        connection.close()
    return count, first


def ask(server: Asked, clients: int, tokens: int) -> Round:
    """Have all clients ask at once."""
    prompts = [f"Count from {number}:" for number in range(clients)]
    process = psutil.Process(server.pid)
    with ThreadPoolExecutor(clients) as threads:
        start, before = time.perf_counter(), process.cpu_times()
        found = list(threads.map(lambda prompt: stream(server.url, prompt, tokens), prompts))
        elapsed, after = time.perf_counter() - start, process.cpu_times()
    if {count for count, _ in found} != {tokens}:
        raise SystemExit(f"clients got {sorted({count for count, _ in found})} tokens, and not {tokens}")
    count = clients * tokens
    cpu = after.user + after.system - before.user - before.system
    return Round(count / elapsed, statistics.median(wait for _, wait in found), cpu / count)


def show(name: str, rounds: list[Round]) -> None:
    """A line for a server."""
    speed, wait, cpu = (statistics.median(values) for values in zip(*rounds, strict=True))
    waited, took = f"{wait * 1e3:>8.0f} ms to the first", f"{cpu * 1e3:>8.2f} ms of processors a token"
    print(f"{name:<16}{speed:>8.1f} tokens/s{waited}{took}")


def show_ratio(name: str, values: list[float]) -> None:
    """The median of a ratio, and its extremes."""
    print(f"{name:<16}{statistics.median(values):>8.3f} ({min(values):.3f} to {max(values):.3f})")


def main() -> None:
    """Measure, and write."""
    parser = arguments(__doc__, "the demo model", tokens=32)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--program", default=program(), help="the llama-server to compare with; that of moebind")
    options = parser.parse_args()
    model = options.model or demo_model()
    n_ctx = options.clients * (128 + options.tokens)
    context = ContextParams(n_ctx=n_ctx, n_threads=options.threads, n_threads_batch=options.threads)
    context = context.with_n_seq_max(options.clients).with_kv_unified(True).with_swa_full(False)
    print(f"{model}: {options.clients} clients, {options.tokens} tokens each, {options.threads} threads")
    with (
        Server(model, context_params=context) as ours,
        plain(options.program, model, options.threads, options.clients, n_ctx) as other,
    ):
        assert ours.pid is not None  # noqa: S101  # it is ready
        rounds: dict[Asked, list[Round]] = {Asked(ours.url, ours.pid): [], other: []}
        for server in rounds:
            ask(server, options.clients, 2)
        for number in range(options.rounds):
            for server in sorted(rounds, reverse=number % 2 == 0):
                rounds[server].append(ask(server, options.clients, options.tokens))
    mine, theirs = rounds.values()
    show("moebind serve", mine)
    show("llama-server", theirs)
    for name, column in (("speed", 0), ("first token", 1), ("processors", 2)):
        show_ratio(name, [our[column] / their[column] for our, their in zip(mine, theirs, strict=True)])


if __name__ == "__main__":
    main()
