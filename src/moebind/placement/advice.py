"""What would help where a plan does not fit. What is said to be enough was planned before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moebind._core.sizes import show_size
from moebind.backend.breakdown import DeviceMemory
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.simulation import MAPPED
from moebind.placement.steps import largest, smallest

__all__ = ["for_device", "for_host"]

#: A context is advised in steps of so many tokens for each sequence: llama.cpp rounds up to them.
STEP = 256


def for_device(
    device: DeviceMemory,
    model: ModelParams,
    context: ContextParams,
    *,
    n_ctx: int,
    n_layer: int,
    n_layer_nextn: int,
    experts: Mapping[int, int],
    enough: Callable[[ModelParams, ContextParams], bool],
) -> list[str]:
    """Changes of a plan with which a device has enough memory.

    Parameters
    ----------
    device
        What the plan has there.
    model, context, n_ctx, n_layer, n_layer_nextn
        As in the plan.
    experts
        Bytes of experts that are on the device, by layer; layers without any are left out.
    enough
        Whether the device has enough with these parameters.
    """
    found: list[str] = []
    freed = sum(experts.values())
    alone = bool(freed) and enough(model.with_cpu_moe_all(), context)
    if alone:
        first = _first_layers(experts, device.total - device.free)
        count = smallest(first, max(experts) + 1, lambda count: enough(model.with_n_cpu_moe(count), context))
        if count is not None and len(experts) > 1 and count < n_layer:
            found.append(f"with_n_cpu_moe({count}) keeps the experts of the first {count} layers in host memory")
        else:
            found.append(f"with_cpu_moe_all() keeps {show_size(freed)} of experts in host memory")
    if device.context:
        step = STEP * (1 if context.kv_unified else context.n_seq_max)
        steps = largest(1, n_ctx // step, lambda steps: enough(model, context.with_n_ctx(steps * step)))
        if steps:
            now = f"which takes {show_size(device.context)} with {n_ctx} tokens"
            found.append(f"an n_ctx of {steps * step} shortens the context, {now}")
    if not alone:
        most = n_layer + n_layer_nextn + 1
        most = most if model.n_gpu_layers < 0 else min(model.n_gpu_layers, most)
        layers = largest(0, most, lambda layers: enough(model.with_n_gpu_layers(layers), context))
        if layers is not None:
            found.append(f"an n_gpu_layers of {layers} leaves {'the other' if layers else 'all'} layers to the CPU")
    if not found:
        found.append(
            "not one layer fits there, so leave it out of the devices (with none, the processor computes everything)"
        )
    if freed and not alone:
        found[0] = f"with_cpu_moe_all() is not enough (it moves {show_size(freed)} of experts); {found[0]}"
    return found


def _first_layers(experts: Mapping[int, int], lacks: int) -> int:
    """Of how many layers, from the first, the experts have so many bytes, or else of how many there are any."""
    freed = 0
    for layer in sorted(experts):
        freed += experts[layer]
        if freed >= lacks:
            return layer + 1
    return max(experts) + 1


def for_host(host: DeviceMemory, unread: int, alone: bool) -> list[str]:
    """What the host's memory consists of, and what would make it less.

    ``unread`` bytes of the file need none; ``alone`` says that there is no device.
    """
    parts = {buffer.name: buffer.model for buffer in host.buffers}
    mapped, other = parts.get(MAPPED, 0) - unread, host.total - parts.get(MAPPED, 0)
    found: list[str] = []
    if mapped > 0 and other > host.free:
        found.append(
            f"{show_size(mapped)} of it may be read from the file again and again, but the other {show_size(other)} "
            "have to fit"
        )
        if host.context:
            found.append(f"{show_size(host.context)} of these are the context, and a shorter n_ctx takes less")
    elif mapped > 0:
        found.append(
            f"{show_size(mapped)} of it are pages of the file, which the system reads again when they do not stay: "
            "slow, but it runs"
        )
    repacked = sum(size for name, size in parts.items() if "REPACK" in name)
    if repacked:
        found.append(f"use_extra_bufts=False leaves {show_size(repacked)} of repacked weights in the file's pages")
    return [
        *found,
        "a smaller quantisation takes less" if alone else "a smaller quantisation, or more on a device, takes less",
    ]
