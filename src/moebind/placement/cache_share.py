"""How much of a budget goes to a cache of experts, and how much to experts that stay on the devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.sizes import show_size
from moebind.errors import ContextCreationError, FitError
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.plan import Plan
from moebind.placement.search import Search

if TYPE_CHECKING:
    from moebind.placement.routing import RoutingRecorder

__all__ = ["BUS", "CacheShare", "cached_params", "check_share", "choose_share"]

#: How fast the bus to a device is, in multiples of host memory's bandwidth, if nothing is said: as sixteen lanes of
#: PCIe 5.0 are beside two channels of DDR5, or of PCIe 4.0 beside DDR4.
BUS = 0.5
#: How many sizes are tried.
N_SIZES = 6
#: A cache has to be better by this much: the next text is another one than what was recorded.
GAIN_MIN = 0.05


@dataclass(frozen=True)
class CacheShare:
    """What was decided.

    Attributes
    ----------
    size : int
        Bytes of the cache; 0: none.
    why : str
        A sentence.
    """

    size: int
    why: str


@dataclass(frozen=True)
class _Candidate:
    plan: Plan
    size: int
    hit_rate: float
    uploaded: float
    cost: float


def cached_params(search: Search, model: ModelParams, context: ContextParams) -> ModelParams:
    """The parameters for a fit with a cache: without repacked weights, if a cache could have none otherwise."""
    plain = model.with_use_extra_bufts(False)
    without = context.with_moe_cache_size(0)
    if not search.header.experts or model == plain or search.fits(search.plan(model, without)):
        return model
    return model if search.plan(model.with_cpu_moe_all(), without)._cached else plain


def check_share(search: Search, given: ModelParams, context: ContextParams, size: int, chosen: Plan) -> None:
    """Refuse a cache of a given size that drives layers from the devices: attention is worth more than any expert.

    Parameters
    ----------
    search
        With the budgets.
    given, context
        What the caller decided; the context is as long as it has to be.
    size
        Bytes of the cache.
    chosen
        What was found with it.

    Raises
    ------
    FitError
        How large it may be.
    """
    context = context.with_moe_cache_size(0)
    without = search.place(given, context)
    if without is None or _n_on_devices(chosen) >= _n_on_devices(without):
        return
    layers = given.with_n_gpu_layers(without.model_params.n_gpu_layers)
    bare = search.plan(cached_params(search, layers, context).with_cpu_moe_all(), context)
    room = {name: -over for name, over in search.excess(bare).items() if name != bare.host.name}
    raise FitError(
        f"moe_cache is {show_size(size)}, and beside the layers that fit on the devices there are "
        f"{show_size(sum(max(each, 0) for each in room.values()))}: give at most that, or 'auto'",
        {name: size - each for name, each in room.items() if each < size},
    )


def _n_on_devices(plan: Plan) -> int:
    """How many layers are on devices, with the output."""
    every = plan.n_layer + plan.n_layer_nextn + 1
    asked = plan.model_params.n_gpu_layers
    return every if asked < 0 else min(asked, every)


def choose_share(
    search: Search, model: ModelParams, context: ContextParams, recorder: RoutingRecorder | None, bus: float
) -> CacheShare:
    """Decide by what a token costs: bytes that it reads from host memory, and what it moves over the bus.

    Parameters
    ----------
    search
        With the budgets.
    model, context
        What is decided already; the context is as long as it has to be.
    recorder
        What the routers choose, in order; None: unknown, and then no cache is better than experts that stay.
    bus
        How fast the bus is, in multiples of host memory's bandwidth.
    """
    context = context.with_moe_cache_size(0)
    best = search.place(model, context)
    if best is None or best.expert_bytes == sum(sum(tensors.values()) for tensors in best._experts.values()):
        return CacheShare(0, "" if best is None else "No cache of experts is needed.")
    if recorder is None:
        why = (
            "No cache of experts: what the routers choose was not recorded (routing=RoutingRecorder(order=True)), and "
            "if they choose evenly, experts that stay are worth more than a cache of the same size."
        )
        return CacheShare(0, why)
    cached = cached_params(search, model, context)
    bare = search.plan(cached.with_cpu_moe_all(), context)
    if not bare._cached:
        return CacheShare(0, "No cache of experts: none that are in host memory belong to layers of a device.")
    room = sum(max(-over, 0) for name, over in search.excess(bare).items() if name != bare.host.name)
    found = [
        candidate
        for size in _sizes(recorder, bare, room, bus)
        if (candidate := _try(search, cached, context, recorder, bus, size)) is not None
    ]
    if not found:
        token = show_size(recorder.cache_curve([2**62], plan=bare).token_bytes)
        why = (
            f"No cache of experts: there is no room for one that holds the experts of one token, {token} in all layers."
        )
        return CacheShare(0, why)
    choice = min(found, key=lambda each: each.cost)
    without = float(best.bytes_per_token[best.host.name])
    said = (
        f"in what was recorded it has {choice.hit_rate:.0%} of the experts that are asked of host memory, and with a "
        f"bus {bus:g} times as fast as that, a token costs what reading {show_size(round(choice.cost))} from there "
        f"does; without a cache {show_size(round(without))}"
    )
    if choice.cost > (1 - GAIN_MIN) * without:
        return CacheShare(0, f"No cache of experts: with one of {show_size(choice.size)}, {said}.")
    return CacheShare(choice.size, f"A cache of experts is worth its place: {said}.")


def _sizes(recorder: RoutingRecorder, bare: Plan, room: int, bus: float) -> list[int]:
    """Sizes worth a try: from what holds the experts of one token of the layers that are then left to it."""
    curve = recorder.cache_curve(plan=bare)
    most, token = curve.full_bytes, curve.token_bytes
    if most <= token:
        return [most] if most <= room else []
    # Beside a cache of C bytes, room - C bytes of experts stay, and a token's of the other layers are fewer.
    least = int(token * max(most - room, 0) / (most - token) * 1.02) + 1
    if bus >= 1:  # even what never hits is not slower
        least = min(least, curve.points[0].size)
    if least > room:
        return []
    return sorted({int(size) for size in np.geomspace(least, min(room, most), N_SIZES)})


def _try(
    search: Search, model: ModelParams, context: ContextParams, recorder: RoutingRecorder, bus: float, size: int
) -> _Candidate | None:
    try:
        plan = search.place(model, context.with_moe_cache_size(size))
    except ContextCreationError:  # too small for one layer
        return None
    if plan is None or not plan._cached or not plan.context_params.moe_cache_size:
        return None
    curve = recorder.cache_curve([2**62], plan=plan)
    try:
        point = curve.at(size)
    except ValueError:
        return None
    if not point.hits + point.misses:  # no batch was small enough for it
        return None
    read = plan.bytes_per_token[plan.host.name]
    return _Candidate(
        plan, size, point.hit_rate, point.bytes_per_token, read - curve.active_bytes + point.bytes_per_token / bus
    )
