"""``moebind serve`` under load: clients that stream, connections that are dropped, a client that never reads.

    python benchmarks/serving_load.py [MODEL.gguf] [--clients N] [--seconds N] [--tokens N] [--connections N]

All ask at once, again and again, for as long as is said; meanwhile connections are opened and dropped at some point of
a request, and one client asks for a long answer and never reads it. No request may fail: it ends with 1 if one does, if
the server was started again, or if it holds more files afterwards than before. Told are also the requests, the tokens,
the longest wait for a first one, and what the server takes of memory before and afterwards.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil
from programs import arguments, demo_model

from moebind import ContextParams
from moebind.server import Server

#: Seconds that anything may take on a machine that is busy otherwise.
PATIENCE = 600


@dataclass
class Seen:
    """What clients saw."""

    requests: int = 0
    tokens: int = 0
    longest_wait: float = 0.0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, tokens: int, wait: float) -> None:
        """Note an answer."""
        with self.lock:
            self.requests += 1
            self.tokens += tokens
            self.longest_wait = max(self.longest_wait, wait)

    def fail(self, why: str) -> None:
        """Note a failure."""
        with self.lock:
            self.failures.append(why)


def body_of(prompt: str, tokens: int) -> bytes:
    """A request for text in a stream."""
    asked = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
        "ignore_eos": True,
    }
    return json.dumps(asked).encode()


def stream(url: str, prompt: str, tokens: int, seen: Seen) -> None:
    """Ask, and read the answer as it comes."""
    there = urlsplit(url)
    connection = http.client.HTTPConnection(str(there.hostname), int(there.port or 0), timeout=PATIENCE)
    start = time.monotonic()
    first, ended, finish = 0.0, False, None
    try:
        connection.request("POST", "/v1/chat/completions", body_of(prompt, tokens))
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            return seen.fail(f"status {answer.status}: {answer.read()[:200]!r}")
        for line in answer:
            first = first or time.monotonic() - start
            ended |= line.startswith(b"data: [DONE]")
            if line.startswith(b"data: {"):
                finish = json.loads(line[6:])["choices"][0]["finish_reason"] or finish
    except (OSError, http.client.HTTPException) as error:
        return seen.fail(f"{type(error).__name__}: {error}")
    finally:
        connection.close()
    if not ended or finish != "length":
        return seen.fail(f"an answer broke off: finish_reason {finish}")
    return seen.add(tokens, first)


def drop(url: str, count: int, seed: int) -> None:
    """Open connections, and drop each at some point of a request, or of its answer."""
    there = urlsplit(url)
    chance = random.Random(seed)  # noqa: S311
    body = body_of("Count.", 64)
    whole = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    for _ in range(count):
        with socket.create_connection((str(there.hostname), int(there.port or 0)), timeout=PATIENCE) as connection:
            connection.sendall(whole[: chance.choice([0, chance.randrange(len(whole)), len(whole)])])
            if chance.random() < 0.2:
                connection.settimeout(0.05)
                with contextlib.suppress(OSError):
                    connection.recv(64)


def never_read(url: str) -> socket.socket:
    """Ask for a long answer, and leave it."""
    there = urlsplit(url)
    connection = socket.create_connection((str(there.hostname), int(there.port or 0)), timeout=PATIENCE)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = body_of("Count.", 400)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return connection


def until_quiet(what: Callable[[], int], most: int) -> int:
    """Wait until a number is small enough again; what it was last."""
    give_up = time.monotonic() + 60
    while (found := what()) > most and time.monotonic() < give_up:
        time.sleep(0.2)
    return found


def main() -> None:
    """Load a server, and tell what came of it."""
    parser = arguments(__doc__, "the demo model", tokens=16)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--connections", type=int, default=1000)
    options = parser.parse_args()
    context = ContextParams(n_threads=options.threads, n_threads_batch=options.threads, swa_full=False, kv_unified=True)
    seen = Seen()
    with Server(options.model or demo_model(), context_params=context, n_ctx=4096, parallel=4) as server:
        assert server.pid is not None  # noqa: S101  # it is ready
        process = psutil.Process(server.pid)
        stream(server.url, "Hello.", options.tokens, Seen())
        files, memory, pid = process.num_fds(), process.memory_info().rss, server.pid
        end = time.monotonic() + options.seconds

        def client(number: int) -> None:
            asked = 0
            while time.monotonic() < end or asked == 0:
                stream(server.url, f"Count from {number}, {asked}:", options.tokens, seen)
                asked += 1

        silent = never_read(server.url)
        with ThreadPoolExecutor(options.clients + 1) as threads:
            jobs = [threads.submit(client, number) for number in range(options.clients)]
            jobs.append(threads.submit(drop, server.url, options.connections, 7))
            for job in jobs:
                job.result()
        silent.close()
        files_after = until_quiet(process.num_fds, files)
        after = process.memory_info().rss
        print(f"{options.clients} clients, {options.seconds:g} s, {options.connections} dropped connections:")
        print(f"{seen.requests} requests, {seen.tokens} tokens, {len(seen.failures)} failed")
        print(f"longest wait for a first token: {seen.longest_wait:.1f} s")
        print(f"open files of the server: {files} before, {files_after} afterwards")
        print(f"memory of the server: {memory >> 20} MiB before, {after >> 20} MiB afterwards")
        print(*seen.failures[:10], sep="\n", end="\n" if seen.failures else "")
        if seen.failures or server.pid != pid or files_after > files:
            sys.exit(1)


if __name__ == "__main__":
    main()
