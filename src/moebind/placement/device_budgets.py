"""Budgets: how much of each device a fit may take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import SupportsIndex

from moebind._core.shown import shown
from moebind._core.sizes import parse_memory, show_size
from moebind.backend.devices import Device
from moebind.placement.plan import Plan

__all__ = ["MARGIN", "MARGIN_SHARE", "read_budgets"]

#: Bytes of a device that stay free when no budget is given, as in llama.cpp's own fit; of small devices, a share.
MARGIN, MARGIN_SHARE = 2**30, 10


def read_budgets(
    memory: SupportsIndex | str | Mapping[str, SupportsIndex | str] | None,
    margin: int | None,
    plan: Plan,
    listed: Iterable[Device],
) -> dict[str, int]:
    """Bytes that may be taken, by device, as ``memory`` and ``margin`` of :func:`moebind.fit` say.

    Devices that are listed and in no plan, since ``model_params`` leaves them out, may be in ``memory``, too.
    """
    if isinstance(memory, Mapping):
        unused = {device.name for device in listed} - {device.name for device in plan.devices}
        memory = {name: size for name, size in memory.items() if name not in unused}
    return _budgets(memory, margin, plan)


def _budgets(
    memory: SupportsIndex | str | Mapping[str, SupportsIndex | str] | None, margin: int | None, plan: Plan
) -> dict[str, int]:
    def left(free: int) -> int:
        return max(free - (min(MARGIN, free // MARGIN_SHARE) if margin is None else margin), 0)

    others = {device.name: left(device.free) for device in plan.devices[:-1] or (plan.host,)}
    if memory is None:
        return others
    most = {device.name: device.capacity for device in plan.devices}
    if not isinstance(memory, Mapping):
        if not isinstance(memory, (str, SupportsIndex)):
            raise TypeError(
                f"memory is {shown(memory)}; it takes one size for each device, such as '12GiB', or a mapping such as "
                f"{{{next(iter(others))!r}: '12GiB'}}"
            )
        size = parse_memory("memory", memory)
        _must_have("memory", size, max(others, key=most.__getitem__), most)
        return {name: min(size, most[name]) for name in others}
    for name in memory:
        if name not in others and name != plan.host.name:
            raise ValueError(f"memory names {shown(name)}; there are {', '.join(each.name for each in plan.devices)}")
    given = {name: parse_memory(f"memory[{shown(name)}]", size) for name, size in memory.items()}
    for name, size in given.items():
        _must_have(f"memory[{shown(name)}]", size, name, most)
    return {**others, **given}


def _must_have(what: str, size: int, name: str, most: Mapping[str, int]) -> None:
    """Refuse a budget that is larger than the device: nothing could keep to it."""
    if size > most[name]:
        raise ValueError(
            f"{what} is {show_size(size)}, and {name} has {show_size(most[name])}: give at most that, or describe the "
            "machine that has more with devices and host"
        )
