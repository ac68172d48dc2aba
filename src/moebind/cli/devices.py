"""Devices and sizes on a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeAlias

import typer

from moebind._core.sizes import parse_size
from moebind.backend.devices import Device, describe, devices
from moebind.enums import DeviceType
from moebind.placement.described_devices import described_device, is_description, read_description, written

__all__ = [
    "LOOPBACK",
    "Devices",
    "DevicesHere",
    "Host",
    "as_devices",
    "checked_size",
    "device_list",
    "exact_size",
    "separate",
]

#: Names a worker process that is started for the command.
LOOPBACK = "loopback"
#: No device has less memory; who says less left the unit out.
LEAST = 2**20

Devices: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        "-dev",
        metavar="DEVICE",
        help="Devices, or sizes of some that are not here (24GiB,vulkan:16GiB); or none.",
        show_default="all GPUs",
    ),
]
#: For commands that compute.
DevicesHere: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        "-dev",
        metavar="DEVICE",
        help="Devices here, loopback, or none.",
        show_default="all GPUs",
    ),
]
Host: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--host",
        metavar="SIZE",
        help="The memory of another machine, such as 64GiB, all of it free.",
        show_default="this machine's",
    ),
]


def separate(given: Sequence[str] | None) -> list[str] | None:
    """Devices one by one; ``none`` is none."""
    if not given:
        return None
    found = [each.strip() for text in given for each in text.split(",")]
    if "none" not in found:
        return found
    if len(found) > 1:
        raise ValueError(f"--device is none beside {', '.join(each for each in found if each != 'none')}; choose")
    return []


def device_list(given: Sequence[str] | None, *, here: bool = False) -> list[Device | str | int] | None:
    """Names of devices as devices, sizes as bytes; ``here``: no sizes, since something is to be computed."""
    if given is None:
        return None
    known = {device.name: device for device in devices()}
    return [known[each] if each in known else _described(each, known, here) for each in given]


def as_devices(listed: Sequence[Device | str | int]) -> list[Device]:
    """Devices that are here or only described, the latter with the names that plans give them."""
    return [
        each if isinstance(each, Device) else describe(at, described_device(at, each)) for at, each in enumerate(listed)
    ]


def checked_size(given: str, option: str = "--device") -> int:
    """The size of a device, or of a host, that is only described."""
    size = read_description(option, given)[1] if option == "--device" else parse_size(option, given)
    if size < LEAST:
        raise ValueError(f"{option} is {given!r}, which is {size} bytes; it takes a size such as 24GiB")
    return size


def exact_size(size: int) -> str:
    """A size as an option takes it, without rounding."""
    for unit in ("GiB", "MiB", "KiB"):
        step = parse_size("a unit", f"1{unit}")
        if size % step == 0:
            return f"{size // step}{unit}"
    return f"{size}B"


def _described(given: str, known: Mapping[str, Device], here: bool) -> str | int:
    names = ", ".join(name for name, device in known.items() if device.type != DeviceType.CPU)
    if here:
        why = ", which describes a device, and this computes" if is_description(given) else ""
        raise ValueError(
            f"--device is {given!r}{why}; it takes the name of a device that is here ({names or 'there is none'}), "
            f"{LOOPBACK} for a worker process of this machine, or none"
        )
    if given == LOOPBACK:
        raise ValueError(
            f"--device is {given!r}, a worker process for commands that compute; this one does not. Describe a device "
            "by its size here, such as 24GiB"
        )
    if is_description(given):
        checked_size(given)
        return written(0, given)
    raise ValueError(
        f"--device is {given!r}; it takes the size of a device that need not be here, such as 24GiB or vulkan:16GiB, "
        f"or the name of one that is: {names or 'this machine has none'}"
    )
