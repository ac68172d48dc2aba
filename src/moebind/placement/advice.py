"""What would help where a plan does not fit. What is said to be enough was planned before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moebind._core.sizes import show_size
from moebind.errors import MoebindError
from moebind.placement.simulation import MAPPED
from moebind.placement.steps import largest, smallest

if TYPE_CHECKING:
    from moebind.backend.breakdown import DeviceMemory
    from moebind.params.params import ContextParams, ModelParams
    from moebind.placement.plan import Plan

__all__ = ["advice_for"]

#: A context is advised in steps of so many tokens for each sequence: llama.cpp rounds up to them.
STEP = 256


def advice_for(plan: Plan) -> tuple[str, ...]:
    """A sentence for each device that lacks memory, and for the host."""
    lacks = plan.missing
    lines = [
        f"{device.name} lacks {show_size(lacks[device.name])}: {', or '.join(_for_device(plan, device))}."
        for device in plan.devices[:-1]
        if device.name in lacks
    ]
    if plan.host.name in lacks:
        lines.append(f"The host lacks {show_size(lacks[plan.host.name])}: {'; '.join(_for_host(plan))}.")
    return tuple(lines)


def _for_device(plan: Plan, device: DeviceMemory) -> list[str]:
    model, context = plan.model_params, plan.context_params

    def helps(model: ModelParams, context: ContextParams) -> bool:
        """Whether the device then has enough, and no other one lacks what it did not lack before."""
        try:
            other = plan._again(model, context)
        except (MoebindError, ValueError):
            return False
        return set(other.missing) - {other.host.name} <= set(plan.missing) - {device.name}

    found: list[str] = []
    enough = False
    there = _experts_on(plan, device)
    freed = sum(there.values())
    alone = bool(freed) and helps(model.with_cpu_moe_all(), context)
    if freed:
        first = _enough_by_size(there, plan.missing[device.name])
        count = smallest(first, max(there) + 1, lambda count: helps(model.with_n_cpu_moe(count), context))
        if alone and count is not None and len(there) > 1 and count < plan.n_layer:
            found.append(f"with_n_cpu_moe({count}) keeps the experts of the first {count} layers in host memory")
        else:
            rest = "" if alone else ", which is not enough alone"
            found.append(f"with_cpu_moe_all() keeps {show_size(freed)} of experts in host memory{rest}")
    if device.context:
        step = STEP * (1 if context.kv_unified else context.n_seq_max)
        steps = largest(1, plan.n_ctx // step, lambda steps: helps(model, context.with_n_ctx(steps * step)))
        if steps:
            enough = True
            found.append(f"an n_ctx of {steps * step} takes less than its {show_size(device.context)} of context")
    if not alone:
        most = plan.n_layer + plan.n_layer_nextn + 1
        most = most if model.n_gpu_layers < 0 else min(model.n_gpu_layers, most)
        layers = largest(0, most, lambda layers: helps(model.with_n_gpu_layers(layers), context))
        if layers is not None:
            enough = True
            found.append(f"an n_gpu_layers of {layers} leaves {'the other' if layers else 'all'} layers to the CPU")
    if not alone and not enough:
        found.append("leave it out of the devices, for nothing else is enough")
    return found


def _experts_on(plan: Plan, device: DeviceMemory) -> dict[int, int]:
    """Bytes of experts on a device, by layer; layers without any there are left out."""
    found = {
        layer: sum(size for name, size in tensors.items() if plan.places.get(name) == device.name)
        for layer, tensors in plan._experts.items()
    }
    return {layer: size for layer, size in found.items() if size}


def _enough_by_size(experts: Mapping[int, int], lacks: int) -> int:
    """Of how many layers, from the first, the experts have so many bytes, or else of how many there are any."""
    freed = 0
    for layer in sorted(experts):
        freed += experts[layer]
        if freed >= lacks:
            return layer + 1
    return max(experts) + 1


def _for_host(plan: Plan) -> list[str]:
    parts = {buffer.name: buffer.model for buffer in plan.host.buffers}
    mapped = parts.get(MAPPED, 0) - plan.gaps - plan.lazy
    found: list[str] = []
    if mapped > 0:
        found.append(
            f"{show_size(mapped)} of it are pages of the file, which the system reads again when they do not stay: "
            "slow, but it runs"
        )
    repacked = sum(size for name, size in parts.items() if "REPACK" in name)
    if repacked:
        found.append(f"use_extra_bufts=False leaves {show_size(repacked)} of repacked weights in the file's pages")
    return [*found, "a smaller quantisation, or more on a device, takes less"]
