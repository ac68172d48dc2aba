"""Machines to plan for: devices that need not be in this one, described by size and backend, and hosts of a size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import SupportsIndex

from moebind._core.native import CData, decoded, lib
from moebind._core.shown import shown
from moebind._core.sizes import parse_memory
from moebind.backend.devices import Device, check_cards, native_device
from moebind.backend.host_memory import HostMemory
from moebind.enums import DeviceType, SplitMode
from moebind.params.params import ModelParams

__all__ = [
    "described_device",
    "described_host",
    "device_list",
    "is_description",
    "read_description",
    "written",
]

#: Backends that a device can be described for, and what comes before the size; without any, it is a card of CUDA's.
KINDS = {"cuda": lib.MOEBIND_DESCRIBED_CUDA, "vulkan": lib.MOEBIND_DESCRIBED_VULKAN}
_KIND = re.compile(rf"\s*(?:({'|'.join(KINDS)})\s*:)?\s*", re.IGNORECASE | re.ASCII)


def read_description(name: str, given: SupportsIndex | str) -> tuple[str, int]:
    """The backend and the bytes that ``24GiB`` or ``vulkan:16GiB`` describe; ``name`` is for messages."""
    if not isinstance(given, str):
        return "cuda", parse_memory(name, given, low=1)
    match = _KIND.match(given)
    size = given[match.end() :] if match else given
    kind = match[1].lower() if match and match[1] else "cuda"
    try:
        return kind, parse_memory(name, size, low=1)
    except ValueError as error:
        if not is_description(given):
            raise ValueError(
                f"{name} is {shown(given)}; it takes a size such as '24GiB', or a Device, as moebind.devices() and "
                "moebind.add_rpc_server() give them"
            ) from None
        if not match or not match[1]:
            raise
        raise ValueError(f"{name} is {shown(given)}; after '{match[1]}:' comes a size: {error}") from None


def is_description(given: str) -> bool:
    """Whether it begins as a description does: with a size, or with a backend and a size. An address does not."""
    match = _KIND.match(given)
    return match is not None and re.match(r"[\d.][^:]*\Z", given[match.end() :], re.ASCII) is not None


def described_device(at: int, given: SupportsIndex | str) -> CData:
    """The ``ggml_backend_dev_t`` of a description, with the name ``GPU`` and its place in the list."""
    kind, size = read_description(f"devices[{at}]", given)
    return lib.moebind_described_device(KINDS[kind], at, size)


def written(at: int, given: SupportsIndex | str) -> str | int:
    """A description as a file has it: bytes, after the backend where it is not CUDA."""
    kind, size = read_description(f"devices[{at}]", given)
    return size if kind == "cuda" else f"{kind}:{size}"


def described_host(host: SupportsIndex | str | None) -> HostMemory | None:
    """A host with so much memory, all of it free; None: this machine."""
    if host is None:
        return None
    size = parse_memory("host", host, low=1)
    return HostMemory(size, size)


def device_list(devices: Sequence[Device | str | int] | None, params: ModelParams) -> list[CData] | None:
    """Native devices, those that are only described included; None: those of the parameters, or of this machine."""
    if devices is None:
        return None
    if isinstance(devices, (str, bytes)) or not isinstance(devices, Sequence):
        raise TypeError(f"devices is {shown(devices)}; it takes a list, such as ['24GiB']")
    if len(devices) >= lib.llama_max_devices():
        raise ValueError(f"devices has {len(devices)}; llama.cpp takes at most {lib.llama_max_devices() - 1}")
    chosen: list[CData] = []
    for at, each in enumerate(devices):
        if isinstance(each, Device):
            if each.type == DeviceType.CPU:
                raise ValueError("devices holds the CPU, which takes what the others do not")
            chosen.append(native_device(each.name))
        else:
            chosen.append(described_device(at, each))
    if len(set(chosen)) != len(chosen):
        raise ValueError("devices names a device twice")
    check_cards("devices", [each for each in devices if isinstance(each, Device)])
    names = [decoded(lib.ggml_backend_dev_name(native)) for native in chosen]
    for device in params.devices or ():
        if device.name not in names:
            raise ValueError(
                f"model_params has the device {shown(device.name)}, which is not among those that are planned for: "
                f"{', '.join(names) or 'none'}; leave devices out of one of them"
            )
    if params.split_mode == SplitMode.ROW and not all(isinstance(each, Device) for each in devices):
        raise ValueError(
            "split_mode is ROW, for which llama.cpp needs a buffer of the real devices: those that are only described "
            "have none. Plan with LAYER instead"
        )
    return chosen
