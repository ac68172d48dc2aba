"""Many copies of moebind's server, as replicas of Ray Serve.

    pip install ".[ray]"   # in .venv: "moebind[ray]"
    python examples/ray_serve.py moe.gguf --replicas 1 4 --port 8000

Any client of OpenAI's works with ``http://127.0.0.1:8000/v1``. docs/ray.md says more.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

import moebind
from moebind.server import Server

#: How often a replica asks its server, if that dies before it has answered; requests change nothing in it.
TRIES = 5
#: What a request and an answer have that is for the other side.
PASSED = ("accept", "authorization", "content-type", "x-api-key")
GONE = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)


def on_this_node(model: str, folder: str) -> str:
    """A model's file in a folder of this machine, copied there by the first replica that needs it.

    Addresses on the Hugging Face Hub stay as they are: its cache has locks of its own.
    """
    if model.startswith("hf://"):
        return model
    os.makedirs(folder, exist_ok=True)
    here = os.path.join(folder, os.path.basename(model))
    with open(f"{here}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which ends with the process that has it
        if not os.path.exists(here):
            shutil.copyfile(model, f"{here}.part")
            os.replace(f"{here}.part", here)
    return here


@serve.deployment
class Model:
    """A replica: a server with the model, which ends with it, and the way to that."""

    async def __init__(self, model: str, folder: str, settings: Mapping[str, Any]) -> None:
        path = await asyncio.to_thread(on_this_node, model, folder)
        self._server = await asyncio.to_thread(lambda: Server(path, **settings))
        # Readiness: Serve sends requests, and asks for the health, once this returns; it may take as long as it takes.
        await asyncio.to_thread(self._server.wait_ready)
        self._client = aiohttp.ClientSession(self._server.url, timeout=aiohttp.ClientTimeout(total=None))

    async def check_health(self) -> None:
        """Raise if the server ended for good. While it is loaded again it is well, and requests wait for it."""
        self._server.wait_ended(timeout=0)

    async def __call__(self, request: Request) -> Response:
        """Pass a request on, and the answer back, as it comes."""
        headers = {name: request.headers[name] for name in PASSED if name in request.headers}
        where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        body = await request.body()
        for attempt in range(TRIES):
            await asyncio.to_thread(self._server.wait_ready)
            try:
                answer = await self._client.request(request.method, where, data=body, headers=headers)
                streams = answer.content_type == "text/event-stream"
                begun = await (answer.content.readany() if streams else answer.read())
            except GONE:
                if attempt == TRIES - 1:
                    raise
                await asyncio.sleep(0.1 * 2**attempt)
                continue
            kept = {name: answer.headers[name] for name in PASSED if name in answer.headers}
            if not streams:
                return Response(begun, answer.status, kept)
            return StreamingResponse(_rest(begun, answer), answer.status, kept)
        raise AssertionError("the last attempt raises")


async def _rest(begun: bytes, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with answer:  # a client that leaves ends the request
        yield begun
        async for piece in answer.content.iter_any():
            yield piece


def needs(model: str, settings: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What Ray has to have free on a node for a replica, from the plan of the model.

    ``host_ram`` is in GiB. A node says how much it has for models: ``ray start --resources='{"host_ram": 256}'``.
    """
    params, context = settings.get("model_params"), settings.get("context_params")
    plan = moebind.plan(
        model,
        params or moebind.ModelParams(),
        (context or moebind.ContextParams()).with_n_ctx(settings["n_ctx"]).with_n_seq_max(settings["parallel"]),
    )
    host = plan.host.total
    return {
        "num_cpus": threads,
        "num_gpus": sum(each.total > 0 for each in plan.devices[:-1]),
        "memory": host,
        "resources": {"host_ram": host / 2**30},
    }


def application(
    model: str,
    *,
    replicas: tuple[int, int] = (1, 4),
    n_ctx: int = 8192,
    parallel: int = 4,
    threads: int = 4,
    folder: str = "/var/tmp/moebind",  # noqa: S108
    **settings: Any,
) -> serve.Application:
    """The deployment; ``settings`` are for :class:`moebind.server.Server`."""
    settings = {"n_ctx": n_ctx, "parallel": parallel, **settings}
    least, most = replicas
    return Model.options(
        ray_actor_options=needs(model, settings, threads),
        # As many requests as are computed side by side; as many again wait in the server.
        autoscaling_config={"min_replicas": least, "max_replicas": most, "target_ongoing_requests": parallel},
        max_ongoing_requests=2 * parallel,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=60,
    ).bind(model, folder, settings)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, nargs=2, default=(1, 4), metavar=("LEAST", "MOST"))
    parser.add_argument("--port", type=int, default=8000)
    asked = parser.parse_args()
    serve.start(http_options={"host": "127.0.0.1", "port": asked.port})
    serve.run(application(asked.model, replicas=tuple(asked.replicas)))
    print(f"http://127.0.0.1:{asked.port}", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        serve.shutdown()


if __name__ == "__main__":
    main()
