"""``moebind devices``: what computes, and how much memory it has."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated

import typer

from moebind._core.sizes import show_size
from moebind._core.tables import Column, text_table
from moebind.backend.devices import Device, backend_state, backends, default_devices, devices
from moebind.backend.host_memory import HostMemory, host_memory
from moebind.backend.rpc_servers import add_rpc_server, remove_rpc_server
from moebind.cli import options as o
from moebind.cli.output import show, show_json
from moebind.enums import DeviceType

Servers = Annotated[
    list[str] | None,
    typer.Option("--rpc", metavar="HOST:PORT", help="RPC servers to ask, too; several with commas between them."),
]


def command(rpc: Servers = None, as_json: o.AsJson = False) -> None:
    """List backends, devices and their memory. Says which of them take layers where nothing else is said.

    Example: moebind devices --rpc 192.168.1.20:50052
    """
    with ExitStack() as stack:
        for endpoint in [each.strip() for text in rpc or () for each in text.split(",")]:
            for device in add_rpc_server(endpoint)[:1]:
                stack.callback(remove_rpc_server, device.description)
        found, taking, memory = devices(), {each.name for each in default_devices()}, host_memory()
        if as_json:
            listed = [{**asdict(each), "type": each.type.name, "takes_layers": each.name in taking} for each in found]
            host = {"capacity": memory.capacity, "free": memory.free, "limit": memory.limit}
            states = {name.lower(): backend_state(name) for name in ("CUDA", "Vulkan")}
            show_json({"backends": backends(), "devices": listed, "host": host, **states})
        else:
            show("\n".join(_lines(found, taking, memory)))


def _lines(found: list[Device], taking: set[str], memory: HostMemory) -> list[str]:
    columns = [
        Column("device", left=True),
        Column("backend", left=True),
        Column("type", left=True),
        Column("memory"),
        Column("free"),
        Column("layers", left=True),
        Column("description", left=True),
    ]
    rows: list[list[object]] = []
    for each in found:
        total, free = each.capacity, each.memory_free
        if each.type == DeviceType.CPU:
            total, free = memory.capacity, memory.free
        sizes = [show_size(total), show_size(free)] if total else ["-", "-"]
        rows.append(
            [each.name, each.backend, each.type.name, *sizes, "yes" if each.name in taking else "-", each.description]
        )
    lines = text_table(columns, rows)
    if not taking:
        lines.append("No device takes layers: models are computed on the CPU. moebind doctor says why.")
    if memory.limit is not None:
        lines.append(f"Host memory is limited by {memory.limit}.")
    states = [f"{name} is {backend_state(name)}." for name in ("CUDA", "Vulkan")]
    return [*lines, f"Backends: {', '.join(backends())}.", *states]
