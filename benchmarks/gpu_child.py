"""One measurement of benchmarks/gpu.py, in a process of its own: a child of moebind.bench.protocol.

``speed`` measures as llama-bench does: random tokens, a prompt at once, then one token after the other from an empty
cache. ``refuse`` asks the device for more than it has, and goes on with a model that fits. ``hold`` takes its memory.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from fit import common_fit

import moebind
from moebind import Batch, Context, ContextParams, Device, LoadMode, Model, ModelParams, MoebindError, lib
from moebind.bench import environment, nvml
from moebind.bench.protocol import Parent, run_child
from moebind.bench.record import FailedError


def open_device(name: str, stack: ExitStack) -> Device:
    """The device of that name; ``loopback`` is a worker process."""
    if name == "loopback":
        return stack.enter_context(moebind.loopback_device())
    found = {each.name: each for each in moebind.devices()}
    if name not in found:
        raise FailedError(f"there is no device {name}; there are {', '.join(found)}. python -m moebind doctor says why")
    return found[name]


def look(_parent: Parent, _request: Mapping[str, Any], device: Device) -> dict[str, object]:
    """Device, driver, build and machine."""
    cards = nvml.devices() or []
    loopback = device.backend == "RPC"
    return {
        "device": "a worker process that plays a GPU" if loopback else device.description,
        "driver": cards[0].driver if cards else "none",
        "devices": [str(each) for each in moebind.devices()],
        "cards": [vars(card) for card in cards],
        "nvml": nvml.reason() or "available",
        "doctor": str(moebind.doctor()),
        "llama.cpp": f"{moebind.llama_cpp_version} ({environment.build()['commit']})",
        "build": environment.build(),
        "machine": environment.machine_record(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def speed(_parent: Parent, request: Mapping[str, Any], device: Device) -> dict[str, object]:
    """Tokens a second of prompts and of single tokens, each repeated after a warm-up, as llama-bench counts them."""
    n_prompt, n_generate = request["n_prompt"], request["n_generate"]
    params = ContextParams.from_dict(request["context_params"]).with_n_ctx(max(n_prompt, n_generate))
    found: dict[str, list[float]] = {"prompt": [], "decode": []}
    random = np.random.default_rng(1)
    with Model.load_from_file(request["path"], _params(request, device)) as model:
        prompts = random.integers(0, model.n_vocab, (request["repeats"] + 1, n_prompt), np.int32)
        with model.new_context(params) as context:
            for at, tokens in enumerate(prompts):
                seconds = _prompt(context, tokens)
                if at > 0:
                    found["prompt"].append(n_prompt / seconds)
            for at in range(request["repeats"] + 1):
                seconds = _generate(model, context, n_generate)
                if at > 0:
                    found["decode"].append(n_generate / seconds)
            held = context.memory_breakdown()
    return {**found, "device_bytes": held.device_bytes}


def _params(request: Mapping[str, Any], device: Device) -> ModelParams:
    return ModelParams.from_dict({**request["model_params"], "devices": [device.name]})


def _prompt(context: Context, tokens: np.ndarray) -> float:
    context.kv_cache_clear()
    start = time.perf_counter()
    for at in range(0, len(tokens), context.n_batch):
        batch = Batch(min(context.n_batch, len(tokens) - at))
        batch.add_sequence(tokens[at : at + context.n_batch], 0, pos=at)
        context.decode(batch)
    context.synchronize()
    return time.perf_counter() - start


def _generate(model: Model, context: Context, count: int) -> float:
    """One token before the first that counts: ``count`` of them, each decoded and chosen, with its text."""
    context.kv_cache_clear()
    pieces = context.generate([model.token_bos or 0], max_tokens=count + 1)
    next(pieces)
    start = time.perf_counter()
    n = sum(1 for _ in pieces)
    if n != count:
        raise FailedError(f"the model ended after {n} of {count} tokens")
    return time.perf_counter() - start


def their_fit(_parent: Parent, request: Mapping[str, Any], device: Device) -> dict[str, object] | None:
    """The parameters that llama.cpp's own fit finds for a budget of this device; None if it finds none."""
    context, path = ContextParams.from_dict(request["context_params"]), Path(request["path"])
    if device.backend == "RPC":  # what is free of its memory is what is free of the machine's, and changes
        plan = common_fit(path, [request["memory"]], context, context.n_ctx)
    else:
        moebind.plan(path, ModelParams(devices=(device,)), context)  # what the driver takes for itself is taken now
        plan = common_fit(path, [request["memory"]], context, context.n_ctx, [device])
    if plan is None or plan.context_params.n_ctx < context.n_ctx:
        return None
    found = plan.model_params.to_dict()
    found.pop("devices", None)
    return {"model_params": found, "device_bytes": plan.device_bytes}


def refuse(_parent: Parent, request: Mapping[str, Any], device: Device) -> dict[str, object]:
    """Messages where a device has too little memory, and a text that is computed after that."""
    too_large = ModelParams(devices=(device,), load_mode=LoadMode.NONE)
    found = {"more than there is": _message_of_load(request["too_large"], too_large), "another process has it": None}
    params = ModelParams(devices=(device,))
    if device.backend == "CUDA":  # a worker process has no memory of its own that somebody else could take
        found["another process has it"] = _while_held(
            device, request["leave"], lambda: _message_of_load(request["path"], params)
        )
    with (
        Model.load_from_file(request["path"], params) as model,
        model.new_context(ContextParams(n_ctx=512)) as context,
    ):
        text = "".join(piece.text for piece in context.generate("Once upon a time", max_tokens=8))
    return {**found, "afterwards": text}


def _message_of_load(path: str, params: ModelParams) -> str:
    try:
        with Model.load_from_file(path, params) as model:
            model.new_context(ContextParams(n_ctx=512)).close()
    except MoebindError as error:
        return f"{type(error).__name__}: {error}"
    return "it was loaded"


def _while_held(device: Device, leave: int, load: Callable[[], str]) -> str:
    """The message of a load, while another process has all of the device's memory but ``leave`` bytes."""
    messages: list[str] = []
    handlers = {"held": lambda pid, content: messages.append(load())}
    run_child("gpu_child", {"what": "hold", "device": device.name, "leave": leave}, handlers=handlers)
    return messages[0]


def hold(parent: Parent, request: Mapping[str, Any], device: Device) -> dict[str, object]:
    """Take memory until only ``leave`` bytes are left, and keep it until the parent has done what it wants."""
    kind = lib.ggml_backend_dev_buffer_type(lib.ggml_backend_dev_get(device.index))
    step, buffers = 64 * 2**20, []
    while moebind.devices()[device.index].memory_free > request["leave"] + step:
        buffers.append(lib.ggml_backend_buft_alloc_buffer(kind, step))
        if not buffers[-1]:
            break
    parent.ask("held")
    return {"held": step * len(buffers)}


def measure(parent: Parent, request: Mapping[str, Any]) -> object:
    """Do what the request says, on its device."""
    functions = {"look": look, "speed": speed, "their fit": their_fit, "refuse": refuse, "hold": hold}
    with ExitStack() as stack:
        return functions[request["what"]](parent, request, open_device(request["device"], stack))
