"""The memory of what drafts, in a plan: a buffer of its own on each device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from moebind._core.sizes import show_size
from moebind.backend.breakdown import BufferMemory, DeviceMemory, sizes_of
from moebind.enums import SpeculativeType
from moebind.params.draft import Draft
from moebind.params.serialize import write

__all__ = ["BUFFER", "DraftMemory", "draft_part"]

#: The buffer that a draft has in a plan, of each device.
BUFFER = "draft"


class DraftMemory(NamedTuple):
    """What drafts, with all its parameters, and what it takes; ``gaps`` and ``lazy`` are as in a plan."""

    draft: Draft
    kind: SpeculativeType
    devices: tuple[DeviceMemory, ...]
    gaps: int
    lazy: int

    def added_to(self, devices: Sequence[DeviceMemory]) -> tuple[DeviceMemory, ...]:
        """The memory of devices, the host's being the last, with the draft's; its own come before the host."""
        own = {device.name: device for device in self.devices if device.total}
        known = {device.name for device in devices}
        more = [replace(device, buffers=(_as_one(device),)) for name, device in own.items() if name not in known]
        both = [_sum(device, own[device.name]) if device.name in own else device for device in devices]
        return (*both[:-1], *more, both[-1])

    def explained(self) -> str:
        """What it takes, as a sentence."""
        sizes = [f"{show_size(each.total)} of {each.name}" for each in self.devices if each.total]
        what = "The model's own layers that draft take" if self.draft.path is None else "The draft takes"
        return f"{what} {' and '.join(sizes)}, which the model does not get."

    def to_dict(self) -> dict[str, object]:
        """It as plain values, for JSON: sizes are bytes."""
        chosen = self.draft
        model, context = chosen.model_params, chosen.context_params
        return {
            "path": chosen.path,
            "kind": self.kind.name,
            "model_params": None if model is None else write(model, callbacks=False),
            "context_params": None if context is None else write(context, callbacks=False),
            "devices": [{"name": device.name, **sizes_of(device)} for device in self.devices],
        }


def draft_part(device: DeviceMemory, part: str) -> int:
    """Bytes of one kind, such as ``context``, that a draft takes of a device: they are among the device's."""
    return sum(getattr(buffer, part) for buffer in device.buffers if buffer.name == BUFFER)


def _as_one(device: DeviceMemory) -> BufferMemory:
    return BufferMemory(BUFFER, device.model, device.context, device.compute, device.moe_cache)


def _sum(device: DeviceMemory, draft: DeviceMemory) -> DeviceMemory:
    return replace(
        device,
        model=device.model + draft.model,
        context=device.context + draft.context,
        compute=device.compute + draft.compute,
        buffers=(*device.buffers, _as_one(draft)),
        moe_cache=device.moe_cache + draft.moe_cache,
    )
