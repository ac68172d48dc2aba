"""``moebind rpc-worker``: this machine's devices for models on other machines."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from moebind._core.log import set_log
from moebind.backend import rpc_worker
from moebind.backend.devices import Device
from moebind.cli.output import show_line


def command(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = rpc_worker.HOST,
    port: Annotated[int, typer.Option("--port", "-p", metavar="N", help="The port to listen on.")] = rpc_worker.PORT,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", "-t", metavar="N", help="Threads of a processor that is served.", show_default="one per core"
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            "-d",
            metavar="NAME",
            help="What to serve; several times for several.",
            show_default="the GPUs, or else the CPU",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="FOLDER",
            help="Keep large tensors there, to be sent once.",
            show_default=False,
        ),
    ] = None,
    allow_network: Annotated[
        bool, typer.Option("--allow-network", help="Listen where other machines can reach it, without authentication.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write a line of JSON once it listens.")] = False,
) -> None:
    """Serve this machine to llama.cpp on other machines. Its GPUs, or else its processor and memory.

    Example: moebind rpc-worker --host 192.168.1.20 --allow-network
    """
    set_log()  # what a worker says of its clients is in no exception
    if as_json:
        _keep_output_for_json()

    def tell(served: list[Device]) -> None:
        listed = [{**asdict(each), "type": each.type.name} for each in served]
        show_line({"host": host, "port": port, "devices": listed})

    rpc_worker.run(host, port, threads, device, cache, allow_network=allow_network, listening=tell if as_json else None)


def _keep_output_for_json() -> None:
    """Have llama.cpp, which writes to standard output what a worker does, write it to standard error."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, "w", encoding=sys.stdout.encoding)
