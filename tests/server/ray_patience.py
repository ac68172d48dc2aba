"""What tests/server/test_ray.py runs, too: what a replica needs, loads that take long, and more replicas under load."""

from __future__ import annotations

import fcntl
import json
import sys
import threading
import time
from pathlib import Path

import openai
import ray
import ray_program  # beside this file; it finds the examples
import ray_serve
from ray import serve
from ray_program import ask, replicas, servers, start, until

import moebind
from moebind import ContextParams, ModelParams

#: Seconds: Serve asks for the health every five, and has three failures in a row end a replica.
LONG = 25


def tell_needs(model: str) -> None:
    """Write what Ray has to have free, beside what the plan says."""
    settings: dict[str, object] = {"n_ctx": 512, "parallel": 2}
    context = ContextParams(n_ctx=512, n_seq_max=2)
    with moebind.loopback_device() as device:
        for devices in ([], [device]):
            params = ModelParams(devices=devices).with_cpu_moe_all()
            found = ray_serve.needs(model, {**settings, "model_params": params}, threads=3)
            host = moebind.plan(model, params, context).host.total
            print("needs:", json.dumps({**found, "host": host}), flush=True)


def main() -> None:
    """Have loads take long, and ask for more than one replica can."""
    model, folder, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    tell_needs(model)
    ray_program.PATIENCE = 300  # Serve waits half a minute before it believes a load
    start(port)
    context = ContextParams(n_threads=1, n_threads_batch=1, n_ubatch=64, swa_full=False, kv_unified=True)
    app = ray_serve.application(
        model,
        replicas=(1, 2),
        n_ctx=1024,
        parallel=1,
        threads=1,
        folder=folder,
        model_params=ModelParams(devices=()),
        context_params=context,
        extra=["--no-warmup"],
    )
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=8)

    # Somebody else copies the file for long: Serve neither ends the replica nor asks it anything.
    answered: list[int] = []
    Path(folder).mkdir()
    with open(Path(folder, f"{Path(model).name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = threading.Thread(target=serve.run, args=(app,))
        started.start()
        until(replicas)
        time.sleep(LONG)
        [name] = replicas()
        loading = started.is_alive() and not servers(folder)
    started.join(ray_program.PATIENCE)
    ask(client, 1, answered)
    print("loaded:", loading, replicas() == [name], answered == [1], flush=True)

    # llama-server says nothing for long, nor of its health: the replica is well, and a request waits.
    [server] = servers(folder)
    server.suspend()
    waiting = threading.Thread(target=ask, args=(client, 2, answered))
    waiting.start()
    time.sleep(LONG)
    held = answered == [1]
    server.resume()
    waiting.join(ray_program.PATIENCE)
    print("again:", held, replicas() == [name], answered == [1, 2], flush=True)

    # More than one replica computes at once: there are two.
    ends = threading.Event()

    def keep_asking(number: int) -> None:
        while not ends.is_set():
            ask(client, number, answered)

    threads = [threading.Thread(target=keep_asking, args=(number,)) for number in range(3, 9)]
    for thread in threads:
        thread.start()
    until(lambda: len(servers(folder)) == 2)
    ends.set()
    for thread in threads:
        thread.join(ray_program.PATIENCE)
    print("scaled:", len(replicas()), -1 in answered, flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
