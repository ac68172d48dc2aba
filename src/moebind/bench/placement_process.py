"""The process that measures one placement: a child of :mod:`moebind.bench.protocol`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from moebind.backend.devices import Device, each_card_once
from moebind.backend.loopback import loopback_device, worker_pids
from moebind.backend.rpc_servers import add_rpc_server
from moebind.bench import drm, nvml
from moebind.bench.agreement import write_captured
from moebind.bench.environment import machine_record
from moebind.bench.measure import capture, check_room, prompt_text, timed_run
from moebind.bench.protocol import Parent
from moebind.bench.rows import memory_record
from moebind.bench.texts import TEXT
from moebind.context.context import Context
from moebind.enums import SplitMode
from moebind.model.model import Model
from moebind.params.params import ContextParams, ModelParams
from moebind.params.serialize import device_of
from moebind.placement.fit import fit
from moebind.placement.plan import plan

__all__ = ["measure", "open_devices"]


def measure(parent: Parent, request: Mapping[str, Any]) -> dict[str, object]:
    """Load, compute and compare as the request says.

    ``step`` is told after each part of the work. ``look`` is asked where memory is to be seen from outside; it does not
    change until the answer comes.
    """
    with ExitStack() as stack:
        # A card is not touched before this: CUDA takes memory for itself when it is first asked for anything.
        devices = open_devices(request["devices"], stack, lambda: _show(parent, "before"))
        return _measure(parent, request, devices)


def open_devices(
    records: Sequence[Mapping[str, Any]], stack: ExitStack, before_cards: Callable[[], None] = lambda: None
) -> list[Device]:
    """The devices of a request, in their order; workers first, then, after ``before_cards``, those of this machine."""
    others = [_open_others(each, stack) for each in records]
    before_cards()
    local = [[device_of(each["name"])] if each["kind"] == "local" else [] for each in records]
    return [device for both in zip(others, local, strict=True) for found in both for device in found]


def _show(parent: Parent, moment: str) -> None:
    gpu, cards, reason = nvml.snapshot(os.getpid())
    held, used = drm.snapshot(os.getpid())
    if held or used:  # of cards that NVML does not know
        gpu, cards = {**held, **(gpu or {})}, {**used, **(cards or {})}
    parent.ask("look", moment=moment, workers=dict(worker_pids), gpu=gpu, cards=cards, reason=reason)


def _open_others(device: Mapping[str, Any], stack: ExitStack) -> list[Device]:
    """A worker of our own, or the devices of a server; none for a device of this machine."""
    if device["kind"] == "loopback":
        return [stack.enter_context(loopback_device(device["memory"], device["n_threads"]))]
    return add_rpc_server(device["endpoint"]) if device["kind"] == "server" else []


def _measure(parent: Parent, request: Mapping[str, Any], devices: Sequence[Device]) -> dict[str, object]:
    path: str = request["path"]
    context_params = ContextParams.from_dict(request["context_params"])
    params = ModelParams.from_dict(request["model_params"])
    if params.devices is None:
        params = params.with_devices(each_card_once(devices))
    if request["memory"] is not None:
        found = fit(
            path,
            memory=request["memory"],
            n_ctx=context_params.n_ctx,  # the same for all that is compared, as is the cache of sliding windows
            swa_full=context_params.swa_full,
            model_params=params,
            context_params=context_params,
        )
        params, context_params = found.model_params, found.context_params
    # llama.cpp does not tell what each device takes where it cuts up tensors.
    planned = None if params.split_mode == SplitMode.TENSOR else plan(path, params, context_params)
    record = machine_record()
    start = time.perf_counter()
    with Model.load_from_file(path, params) as model, model.new_context(context_params) as context:
        loaded = time.perf_counter() - start
        parent.tell("step")
        return {
            "row": {
                "model_params": params.to_dict(),
                "context_params": context_params.to_dict(),
                "predicted": None if planned is None else memory_record(planned),
                "load": loaded,
                **_run(parent, request, model, context),
            },
            "machine": record,
            "model": {
                "description": model._title,
                "n_params": model.n_params,
                "size": model.size,
                "n_ctx": context.n_ctx,
            },
        }


def _run(parent: Parent, request: Mapping[str, Any], model: Model, context: Context) -> dict[str, object]:
    n_prompt, n_generate = request["n_prompt"], request["n_generate"]
    check_room(model, context, n_prompt + n_generate)
    text = prompt_text(model, TEXT, n_prompt)
    runs = []
    for at in range(request["warmup"] + request["repeats"]):
        run = timed_run(model, context, text, n_prompt, n_generate)
        if at >= request["warmup"]:
            runs.append(asdict(run))
        parent.tell("step")
    allocated = memory_record(context.memory_breakdown())
    cached = context.moe_cache_stats()
    _show(parent, "held")
    captured = capture(model, context, request["prompts"], n_generate, lambda: parent.tell("step"))
    write_captured(request["logits"], captured)
    return {"runs": runs, "allocated": allocated, "moe_cache": None if cached is None else asdict(cached)}
