"""One measurement of benchmarks/gpu.py, in a process of its own. It is asked in JSON and answers in JSON.

    python benchmarks/gpu_child.py '{"what": "speed", ...}'

``speed`` measures as llama-bench does: random tokens, a prompt at once, then one token after the other from an empty
cache. ``refuse`` asks the device for more than it has, and goes on with a model that fits. ``hold`` takes its memory.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from fit import common_fit

import moebind
from moebind import Batch, Context, ContextParams, Device, LoadMode, Model, ModelParams, MoebindError, lib
from moebind.bench import environment, nvml
from moebind.params import serialize


def open_device(name: str, stack: ExitStack) -> Device:
    """The device of that name; ``loopback`` is a worker process."""
    if name == "loopback":
        return stack.enter_context(moebind.loopback_device())
    found = {each.name: each for each in moebind.devices()}
    if name not in found:
        raise SystemExit(f"there is no device {name}; there are {', '.join(found)}. python -m moebind doctor says why")
    return found[name]


def look(_: dict[str, Any], device: Device) -> dict[str, object]:
    """What there is."""
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


def speed(asked: dict[str, Any], device: Device) -> dict[str, object]:
    """Tokens a second of prompts and of single tokens, each repeated after a warm-up, as llama-bench counts them."""
    n_prompt, n_generate = asked["n_prompt"], asked["n_generate"]
    params = serialize.context_params(asked["context_params"]).with_n_ctx(max(n_prompt, n_generate))
    found: dict[str, list[float]] = {"prompt": [], "decode": []}
    random = np.random.default_rng(1)
    with Model.load_from_file(asked["path"], _params(asked, device)) as model:
        prompts = random.integers(0, model.n_vocab, (asked["repeats"] + 1, n_prompt), np.int32)
        with model.new_context(params) as context:
            for at, tokens in enumerate(prompts):
                seconds = _prompt(context, tokens)
                if at > 0:
                    found["prompt"].append(n_prompt / seconds)
            for at in range(asked["repeats"] + 1):
                seconds = _generate(model, context, n_generate)
                if at > 0:
                    found["decode"].append(n_generate / seconds)
            held = context.memory_breakdown()
    return {**found, "device_bytes": held.device_bytes}


def _params(asked: dict[str, Any], device: Device) -> ModelParams:
    return serialize.model_params({**asked["model_params"], "devices": [device.name]})


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
        raise RuntimeError(f"the model ended after {n} of {count} tokens")
    return time.perf_counter() - start


def their_fit(asked: dict[str, Any], device: Device) -> dict[str, object] | None:
    """What llama.cpp's own fit finds for a budget of this device."""
    context, path = serialize.context_params(asked["context_params"]), Path(asked["path"])
    if device.backend == "RPC":  # what is free of its memory is what is free of the machine's, and changes
        plan = common_fit(path, [asked["memory"]], context, context.n_ctx)
    else:
        moebind.plan(path, ModelParams(devices=(device,)), context)  # what the driver takes for itself is taken now
        plan = common_fit(path, [asked["memory"]], context, context.n_ctx, [device])
    if plan is None or plan.context_params.n_ctx < context.n_ctx:
        return None
    found = serialize.carried(plan.model_params)
    found.pop("devices", None)
    return {"model_params": found, "device_bytes": plan.device_bytes}


def refuse(asked: dict[str, Any], device: Device) -> dict[str, object]:
    """What is said when a device has too little memory, and whether the process computes after that."""
    context = ContextParams(n_ctx=512)
    try:
        with Model.load_from_file(asked["too_large"], ModelParams(devices=(device,), load_mode=LoadMode.NONE)):
            alone = "it was loaded"
    except MoebindError as error:
        alone = f"{type(error).__name__}: {error}"
    with_others = None
    if device.backend == "CUDA":  # a worker process has no memory of its own that somebody else could take
        with _taken(device, asked["leave"]):
            try:
                with Model.load_from_file(asked["path"], ModelParams(devices=(device,))) as model:
                    model.new_context(context).close()
                with_others = "it was loaded"
            except MoebindError as error:
                with_others = f"{type(error).__name__}: {error}"
    with (
        Model.load_from_file(asked["path"], ModelParams(devices=(device,))) as model,
        model.new_context(context) as live,
    ):
        said = "".join(piece.text for piece in live.generate("Once upon a time", max_tokens=8))
    return {"more than there is": alone, "another process has it": with_others, "afterwards": said}


def _taken(device: Device, leave: int) -> subprocess.Popen[str]:
    """Another process that has all of the device's memory but ``leave`` bytes, until the end of the ``with`` block."""
    command = [
        sys.executable,
        os.path.abspath(__file__),
        json.dumps({"what": "hold", "device": device.name, "leave": leave}),
    ]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if other.stdout is None or not other.stdout.readline().startswith("{"):
        raise RuntimeError("the process that was to hold the device's memory ended")
    return other  # leaving its with block closes its input, which ends it


def hold(asked: dict[str, Any], device: Device) -> dict[str, object]:
    """Take memory until only ``leave`` bytes are left, and keep it until standard input ends."""
    kind = lib.ggml_backend_dev_buffer_type(lib.ggml_backend_dev_get(device.index))
    step, kept = 64 * 2**20, []
    while moebind.devices()[device.index].memory_free > asked["leave"] + step:
        kept.append(lib.ggml_backend_buft_alloc_buffer(kind, step))
        if not kept[-1]:
            break
    print(json.dumps({"taken": step * len(kept)}), flush=True)
    sys.stdin.read()
    return {"taken": step * len(kept)}


def main() -> None:
    """Do what is asked."""
    asked = json.loads(sys.argv[1])
    with ExitStack() as stack:
        device = open_device(asked["device"], stack)
        found = {"look": look, "speed": speed, "their fit": their_fit, "refuse": refuse, "hold": hold}[asked["what"]](
            asked, device
        )
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
