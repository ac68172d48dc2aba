"""``moebind serve`` against plain llama-server of the same build: many clients that stream, in interleaved rounds.

    python benchmarks/serving_speed.py [MODEL.gguf] [--seconds N] [--threads N] [--tokens N] [--clients N] [--program P]

In each round the clients ask one server, all at once, for as many tokens each, and then the other; which is first
changes from round to round, and the one that is not asked is idle. So it goes on until each was asked for a minute, or
``--seconds``, and for ``--rounds`` rounds. No request may fail. Told are, as medians over the rounds: how many tokens
all clients got a second, how long one waited for its first, and what a token took of the processors; and how much
better each of these is with moebind, with the interval in which the median lies but for a chance of 5 %. It ends with 1
if one of the first two is missed: if the whole interval is below 0.99.

On a shared machine only the ratios mean something; that of the processors' time means most, with one thread. With
``--program``, the other one is that llama-server, such as one that was compiled otherwise.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
from programs import arguments, demo_model
from speed_judge import LEAST, judge

from moebind.server.address import Address
from moebind.server.isolation import environment
from moebind.server.process import program

#: What moebind has to reach at least, as a share of what llama-server does by itself.
TARGET = 0.99


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
def started(command: Sequence[object], url: str, variables: dict[str, str]) -> Iterator[Asked]:
    """A server, once it answers."""
    words = [str(each) for each in command]
    with subprocess.Popen(words, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not answers(int(urlsplit(url).port or 0)):
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(words)} ended: {process.returncode}")
                time.sleep(0.1)
            yield Asked(url, process.pid)
        finally:
            process.terminate()


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
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise SystemExit(f"a request failed: status {answer.status}, {answer.read()[:200]!r}")
        for line in answer:
            if line.startswith(b"data: "):
                first = first or time.perf_counter() - start
                count = int(json.loads(line[6:]).get("tokens_predicted", count))  # the last one tells
    finally:
        connection.close()
    return count, first


def spent(pid: int) -> float:
    """Seconds of processors that a process and those that it started took."""
    main = psutil.Process(pid)
    times = [each.cpu_times() for each in (main, *main.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def ask(server: Asked, clients: int, tokens: int) -> Round:
    """Have all clients ask at once."""
    prompts = [f"Count from {number}:" for number in range(clients)]
    with ThreadPoolExecutor(clients) as threads:
        before, start = spent(server.pid), time.perf_counter()
        found = list(threads.map(lambda prompt: stream(server.url, prompt, tokens), prompts))
        elapsed, cpu = time.perf_counter() - start, spent(server.pid) - before
    if {count for count, _ in found} != {tokens}:
        raise SystemExit(f"clients got {sorted({count for count, _ in found})} tokens, and not {tokens}")
    count = clients * tokens
    return Round(count / elapsed, statistics.median(wait for _, wait in found), cpu / count)


def show(name: str, rounds: list[Round]) -> None:
    """A line for a server."""
    speed, wait, cpu = (statistics.median(values) for values in zip(*rounds, strict=True))
    waited, took = f"{wait * 1e3:>8.0f} ms to the first", f"{cpu * 1e3:>8.2f} ms of processors a token"
    print(f"{name:<16}{speed:>8.1f} tokens/s{waited}{took}")


def show_ratio(name: str, values: list[float], target: float | None) -> bool:
    """How much better moebind is; whether the target is not missed."""
    judged = judge(values, target)
    verdict = f", {judged.verdict} ({target} at least)" if judged.verdict else ""
    print(f"{name:<16}{judged.median:>8.3f} ({judged.low:.3f} to {judged.high:.3f}, {judged.pairs} pairs){verdict}")
    return judged.verdict != "missed"


def main() -> None:
    """Measure, and write."""
    parser = arguments(__doc__, "the demo model", tokens=16)
    parser.set_defaults(rounds=LEAST)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each is asked")
    parser.add_argument("--program", default=program(), help="the llama-server to compare with; that of moebind")
    options = parser.parse_args()
    model, clients = options.model or demo_model(), options.clients
    n_ctx = clients * (128 + options.tokens)
    print(f"{model}: {clients} clients, {options.tokens} tokens each, {options.threads} threads")
    ours, theirs = (Address.free("127.0.0.1", 0, guarded=False) for _ in range(2))
    asked = ["-c", n_ctx, "-np", clients, "-t", options.threads, "-tb", options.threads, "--kv-unified"]
    serve = [sys.executable, "-m", "moebind", "serve", model, *asked, "--no-ui", "--port", ours.port]
    plain = [options.program, "-m", model, *asked, "--port", theirs.port]
    with started(serve, ours.url, dict(os.environ)) as mine, started(plain, theirs.url, environment()) as other:
        rounds: dict[Asked, list[Round]] = {mine: [], other: []}
        for server in rounds:
            ask(server, clients, 2)
        end = time.monotonic() + 2 * options.seconds
        while len(rounds[mine]) < options.rounds or time.monotonic() < end:
            order = list(rounds) if len(rounds[mine]) % 2 else list(rounds)[::-1]
            for server in order:
                rounds[server].append(ask(server, clients, options.tokens))
    show("moebind serve", rounds[mine])
    show("llama-server", rounds[other])
    pairs = list(zip(rounds[mine], rounds[other], strict=True))
    # Less is better for all but the speed.
    reached = [
        show_ratio("speed", [our.speed / their.speed for our, their in pairs], TARGET),
        show_ratio("first token", [their.wait / our.wait for our, their in pairs], TARGET),
        show_ratio("processors", [their.cpu / our.cpu for our, their in pairs], None),
    ]
    print(f"{2 * len(pairs) * clients} requests, none failed")
    if not all(reached):
        sys.exit(1)


if __name__ == "__main__":
    main()
