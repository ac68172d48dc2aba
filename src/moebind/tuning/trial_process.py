"""The process that measures configurations of one way to load a model: a child of :mod:`moebind.bench.protocol`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

from moebind.backend.devices import each_card_once
from moebind.bench.agreement import write_captured
from moebind.bench.measure import capture, check_room, prompt_text, timed_batch, timed_run
from moebind.bench.placement_process import open_devices
from moebind.bench.protocol import Parent
from moebind.bench.texts import TEXT
from moebind.errors import MoebindError
from moebind.model.model import Model
from moebind.params.params import ContextParams, ModelParams
from moebind.tuning.configuration import Process
from moebind.tuning.speculation import Speculation
from moebind.tuning.written_texts import continued, timed_texts

__all__ = ["measure"]

#: Tokens of the run before the one that counts: enough to have every weight read once.
WARM_UP = (32, 2)


def measure(parent: Parent, request: Mapping[str, Any]) -> None:
    """Load the model, and measure one context after the other.

    ``begins`` and ``measured`` are told of each, with its number; what a context could not do is told in ``measured``,
    too, and the others go on.
    """
    Process.from_dict(request["process"]).apply()  # before anything native is touched
    with ExitStack() as stack:
        devices = open_devices(request["devices"], stack)
        params = ModelParams.from_dict(request["model_params"])
        if params.devices is None:
            params = params.with_devices(each_card_once(devices))
        model = stack.enter_context(Model.load_from_file(request["path"], params))
        text = prompt_text(model, TEXT, request["n_prompt"] * request["n_sequences"])
        for number, (fields, drafts) in enumerate(zip(request["contexts"], request["speculations"], strict=True)):
            parent.tell("begins", number=number)
            start = time.perf_counter()
            speculation = None if drafts is None else Speculation.from_dict(drafts)
            try:
                found = _one(request, model, ContextParams.from_dict(fields), speculation, text)
            except (MoebindError, ValueError) as error:
                found = {"failure": f"{type(error).__name__}: {error}"}
            parent.tell("measured", number=number, seconds=time.perf_counter() - start, **found)


def _one(
    request: Mapping[str, Any], model: Model, params: ContextParams, speculation: Speculation | None, text: str
) -> dict[str, object]:
    n_prompt, n_generate, n_sequences = (request[name] for name in ("n_prompt", "n_generate", "n_sequences"))
    with (
        model.new_context(params) as context,
        nullcontext() if speculation is None else speculation.opened(context) as speculative,
    ):
        check_room(model, context, n_prompt + n_generate)
        if request["logits"] is not None:
            captured = capture(model, context, request["prompts"], n_generate, lambda: None)
            if speculative is not None:
                captured = replace(captured, greedy=continued(context, request["prompts"], captured, speculative))
            write_captured(request["logits"], captured)
            return {"speeds": {}}
        timed_run(model, context, text, min(WARM_UP[0], n_prompt), min(WARM_UP[1], n_generate))
        if request["writes"]:
            prompt, speed = timed_texts(context, text, n_prompt, request["prompts"], n_generate, speculative)
            speeds = {"prompt": prompt, "batch" if n_sequences > 1 else "decode": speed}
        elif n_sequences > 1:
            batch = timed_batch(model, context, text, n_prompt, n_generate, n_sequences)
            speeds = {"prompt": batch.prompt_speed, "batch": batch.decode_speed}
        else:
            run = timed_run(model, context, text, n_prompt, n_generate)
            speeds = {"prompt": run.prompt_speed, "decode": run.decode_speed}
        held = {device.name: device.total for device in context.memory_breakdown().devices}
        return {"speeds": speeds, "memory": held}
