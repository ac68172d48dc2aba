"""The process that measures one placement: ``python -m moebind.bench.child``.

It reads one line of JSON with what to do, and writes lines of JSON with what it found. Where memory is to be seen from
outside, it waits for a line. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, TextIO

from moebind.backend.devices import Device
from moebind.backend.loopback import loopback_device, worker_pids
from moebind.backend.rpc_servers import add_rpc_server
from moebind.bench import nvml
from moebind.bench.agreement import write_captured
from moebind.bench.environment import machine_record
from moebind.bench.measure import capture, check_room, prompt_text, timed_run
from moebind.bench.report import memory_record
from moebind.bench.texts import TEXT
from moebind.context.context import Context
from moebind.errors import MoebindError
from moebind.model.model import Model
from moebind.params import serialize
from moebind.placement.fit import fit
from moebind.placement.plan import plan

__all__ = ["main"]


class Parent:
    """Who asked: lines come from it, and lines go to it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        # Not from sys.stdin: an interpreter that ends would wait for what a thread reads it with.
        waiting = b""
        while read := os.read(0, 2**16):
            *lines, waiting = (waiting + read).split(b"\n")
            for line in lines:
                self._lines.put(line)
        os._exit(1)  # whoever asked is gone, and so is whatever they wanted

    def ask(self) -> Any:
        """The next line."""
        return json.loads(self._lines.get())

    def tell(self, event: str, **found: object) -> None:
        """Write a line."""
        self._out.write(json.dumps({"event": event, **found}) + "\n")
        self._out.flush()

    def step(self) -> None:
        """Say that a part of the work is done."""
        self.tell("step")

    def show(self, moment: str) -> None:
        """Let memory be looked at, which does not change meanwhile."""
        gpu, cards, reason = nvml.snapshot(os.getpid())
        self.tell("look", moment=moment, workers=dict(worker_pids), gpu=gpu, cards=cards, reason=reason)
        self.ask()


def main() -> None:
    """Do what the first line asks for."""
    # What else writes to standard output must not come between.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    parent = Parent(out)
    asked = parent.ask()
    try:
        with ExitStack() as stack:
            others = [_open_others(each, stack) for each in asked["devices"]]
            # A card is not touched before this: CUDA takes memory for itself when it is first asked for anything.
            parent.show("before")
            local = [
                [serialize.device_of(each["name"])] if each["kind"] == "local" else [] for each in asked["devices"]
            ]
            devices = [device for both in zip(others, local, strict=True) for found in both for device in found]
            _measure(parent, asked, devices)
    except (MoebindError, ValueError, TypeError, IndexError, OSError, MemoryError) as error:
        parent.tell("failed", reason=f"{type(error).__name__}: {error}")


def _open_others(asked: Mapping[str, Any], stack: ExitStack) -> list[Device]:
    """A worker of our own, or the devices of a server; none for a device of this machine."""
    if asked["kind"] == "loopback":
        return [stack.enter_context(loopback_device(asked["memory"], asked["n_threads"]))]
    return add_rpc_server(asked["endpoint"]) if asked["kind"] == "server" else []


def _measure(parent: Parent, asked: Mapping[str, Any], devices: Sequence[Device]) -> None:
    path: str = asked["path"]
    context_params = serialize.context_params(asked["context_params"])
    params = serialize.model_params(asked["model_params"])
    if params.devices is None:
        params = params.with_devices(devices)
    if asked["memory"] is not None:
        n_ctx = context_params.n_ctx  # the same for all that is compared
        found = fit(path, memory=asked["memory"], n_ctx=n_ctx, model_params=params, context_params=context_params)
        params, context_params = found.model_params, found.context_params
    planned = plan(path, params, context_params)
    record = machine_record()
    start = time.perf_counter()
    with Model.load_from_file(path, params) as model, model.new_context(context_params) as context:
        loaded = time.perf_counter() - start
        parent.step()
        parent.tell(
            "done",
            row={
                "model_params": serialize.carried(params),
                "context_params": serialize.carried(context_params),
                "predicted": memory_record(planned),
                "load": loaded,
                **_run(parent, asked, model, context),
            },
            machine=record,
            model={"description": model._title, "n_params": model.n_params, "size": model.size, "n_ctx": context.n_ctx},
        )


def _run(parent: Parent, asked: Mapping[str, Any], model: Model, context: Context) -> dict[str, object]:
    n_prompt, n_generate = asked["n_prompt"], asked["n_generate"]
    check_room(model, context, n_prompt + n_generate)
    text = prompt_text(model, TEXT, n_prompt)
    runs = []
    for at in range(asked["warmup"] + asked["repeats"]):
        run = timed_run(model, context, text, n_prompt, n_generate)
        if at >= asked["warmup"]:
            runs.append(asdict(run))
        parent.step()
    allocated = memory_record(context.memory_breakdown())
    parent.show("held")
    captured = capture(model, context, asked["prompts"], n_generate, parent.step)
    write_captured(asked["logits"], captured)
    return {
        "runs": runs,
        "allocated": allocated,
    }


if __name__ == "__main__":
    main()
