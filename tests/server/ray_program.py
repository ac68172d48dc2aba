"""What tests/server/test_ray.py runs, in a process with Ray: the examples, with replicas that are killed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import openai
import psutil
import ray
from ray import serve

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import ray_batch
import ray_serve

from moebind import ContextParams, ModelParams

PATIENCE = 120


def replicas() -> list[str]:
    """The names of the replicas that run."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(each["name"] for each in named if each["name"].startswith("SERVE_REPLICA::"))


def kill_one() -> None:
    """Kill a replica as its machine would: nothing of it can say goodbye."""
    ray.kill(ray.get_actor(replicas()[0], namespace="serve"))


def start(port: int) -> None:
    """Start Ray, and Serve. They wait half a minute for one, and one for the other: that may be too short where the
    machine is busy otherwise."""
    for more in (2, 1, 0):
        try:
            ray.init(num_cpus=4, resources={"host_ram": 64}, include_dashboard=False, log_to_driver=False)
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            return
        except Exception as error:  # for Ray itself, it has no class
            if not more or not (isinstance(error, TimeoutError) or "timed out during startup" in str(error)):
                raise
            ray.shutdown()


def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > give_up:
            raise SystemExit("it took too long")
        time.sleep(0.05)


def servers(folder: str) -> list[psutil.Process]:
    """The servers of the replicas, with the model of this folder."""
    found = psutil.process_iter(["name", "cmdline"])
    # One that has just ended has no command line any more.
    return [
        each for each in found if each.info["name"] == "llama-server" and folder in " ".join(each.info["cmdline"] or ())
    ]


def ask(client: openai.OpenAI, number: int, answered: list[int]) -> None:
    """Ask for a few tokens, in a stream if the number is even."""
    asked = [{"role": "user", "content": f"question {number}"}]
    reply = client.chat.completions.create(
        model="any",
        messages=asked,
        max_tokens=24,
        temperature=0,
        stream=number % 2 == 0,
        extra_body={"ignore_eos": True},
    )
    if number % 2 == 0:
        pieces = [piece.choices[0] for piece in reply if piece.choices]
        answered.append(number if pieces[-1].finish_reason == "length" else -1)
    else:
        answered.append(number if reply.usage.completion_tokens == 24 else -1)


def whole(client: openai.OpenAI, number: int, answered: list[int]) -> None:
    """Ask again where a stream broke off: what came of it is not the answer, and no client repeats it by itself."""
    for _ in range(5):
        try:
            return ask(client, number, answered)
        except Exception as error:  # a broken stream is an error of the client's HTTP library, whichever that is
            print("again:", type(error).__name__, flush=True)
    return answered.append(-1)


def main() -> None:
    """Ask many things, and kill replicas meanwhile."""
    model, folder, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    start(port)
    context = ContextParams(n_threads=1, n_threads_batch=1, n_ubatch=64, swa_full=False, kv_unified=True)
    app = ray_serve.application(
        model,
        replicas=(2, 2),
        n_ctx=1024,
        threads=1,
        folder=folder,
        model_params=ModelParams(devices=()),
        context_params=context,
        extra=["--no-warmup"],
    )
    serve.run(app)
    url = f"http://127.0.0.1:{port}"
    assert len(replicas()) == 2
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=8)

    answered: list[int] = []
    threads = [threading.Thread(target=whole, args=(client, number, answered)) for number in range(24)]
    for thread in threads:
        thread.start()
    until(lambda: len(answered) > 2)
    kill_one()
    for thread in threads:
        thread.join(PATIENCE)
    print("clients:", sorted(answered) == list(range(24)), flush=True)

    until(lambda: len(replicas()) == 2)
    killer = threading.Timer(2, kill_one)
    killer.start()
    rows = ray.data.from_items([{"prompt": f"question {number}"} for number in range(96)])
    found = ray_batch.answers(url, rows, at_once=8, max_tokens=16, temperature=0).take_all()
    killer.join()
    print("batch:", len(found), len({row["prompt"] for row in found}), flush=True)

    # The server of a replica dies: it is started again, and what was asked of it is asked again.
    until(lambda: len(servers(folder)) == 2)
    for each in servers(folder):
        each.kill()
    print("restarted:", client.with_options(max_retries=0).models.list().data[0].object, flush=True)
    serve.shutdown()
    ray.shutdown()
    until(lambda: not servers(folder))
    print("nothing left", flush=True)


if __name__ == "__main__":
    main()
