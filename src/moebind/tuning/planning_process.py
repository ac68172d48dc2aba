"""The process that plans for a search: a child of :mod:`moebind.bench.protocol`.

It looks at the devices, so that the process that searches does not have to, and is gone before a trial begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from moebind.backend.devices import Device
from moebind.bench.environment import machine_record
from moebind.bench.placement_process import open_devices
from moebind.bench.protocol import Parent
from moebind.diagnosis.facts import lockable
from moebind.placement.fit import fit
from moebind.placement.header import read_header
from moebind.placement.plan import Plan
from moebind.placement.search import Search
from moebind.tuning.configuration import Configuration
from moebind.tuning.dimensions import DIMENSIONS, Planner
from moebind.tuning.goals import Goal
from moebind.tuning.machine import Processors, processors
from moebind.tuning.search import Choice

__all__ = ["measure"]


def measure(parent: Parent, request: Mapping[str, Any]) -> dict[str, object]:
    """Find where a search begins, or the choices of a dimension."""
    with ExitStack() as stack:
        devices = open_devices(request["devices"], stack)
        return _start(request, devices) if request["what"] == "start" else _choices(request, devices)


def _start(request: Mapping[str, Any], devices: Sequence[Device]) -> dict[str, object]:
    """The parameters as they were given, where they fit; else as :func:`moebind.fit` places them."""
    given = Configuration.from_dict(request["given"])
    model, context = given.model_params, given.context_params
    found = fit(
        request["path"],
        memory=request["memory"],
        n_ctx=context.n_ctx,
        swa_full=context.swa_full,
        model_params=model.with_devices(devices) if model.devices is None else model,
        context_params=context,
    )
    params = found.model_params
    start = Configuration.of(
        params.with_devices(None) if params.devices == tuple(devices) else params, found.context_params
    )
    host = found.plan.host
    return {
        "start": start.to_dict(),
        "budgets": dict(found.budgets),
        # What is free now is what there is for the whole search; a mapped file may be larger.
        "host_room": max(host.free, found.plan._host_needs),
        "planned": _planned(found.plan),
        "processors": processors().to_dict(),
        "machine": machine_record(),
        "explanation": found.explanation,
    }


def _choices(request: Mapping[str, Any], devices: Sequence[Device]) -> dict[str, object]:
    began = request["began"]
    planner = Planner(
        Search(read_header(request["path"]), None, began["budgets"]),
        Configuration.from_dict(request["given"]),
        frozenset(request["given_fields"]),
        devices,
        Processors.from_dict(began["processors"]),
        Goal(**request["goal"]),
        began["host_room"],
        lockable(),
        request["draft"],
    )
    current = Configuration.from_dict(request["current"])
    drafting = planner.drafting(current)
    found = DIMENSIONS[request["dimension"]](drafting, current)
    if isinstance(found, str):
        return {"why": found}
    others = [each for each in found if each.refused is not None or each.subject != current]
    return {"choices": [_choice(planner, each) for each in others]}


def _choice(planner: Planner, choice: Choice[Configuration]) -> dict[str, object]:
    subject, refused, planned = choice.subject, choice.refused, dict[str, int]()
    if refused is None:
        # A draft is loaded like the model, and so takes what this choice has it take.
        planner = planner.drafting(subject)
        refused = planner.refusal(planner.model(subject), subject.context_params)
        planned = {} if refused is not None else _planned(planner.plan(subject))
    return {"name": choice.name, "subject": subject.to_dict(), "refused": refused, "planned": planned}


def _planned(plan: Plan) -> dict[str, int]:
    """Bytes, by device."""
    return {device.name: device.total for device in plan.devices}
