"""Devices that need not be in this machine: described by their size, and by the backend that would drive them."""

from __future__ import annotations

import re
from typing import SupportsIndex

from moebind._core.native import CData, lib
from moebind._core.shown import shown
from moebind._core.sizes import parse_memory

__all__ = ["described_device", "is_description", "read_description", "written"]

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
    """Whether it begins as a description does: with a size, or with a backend and a size."""
    match = _KIND.match(given)
    return match is not None and re.match(r"[\d.]", given[match.end() :], re.ASCII) is not None


def described_device(at: int, given: SupportsIndex | str) -> CData:
    """The ``ggml_backend_dev_t`` of a description, with the name ``GPU`` and its place in the list."""
    kind, size = read_description(f"devices[{at}]", given)
    return lib.moebind_described_device(KINDS[kind], at, size)


def written(at: int, given: SupportsIndex | str) -> str | int:
    """A description as a file has it: bytes, after the backend where it is not CUDA."""
    kind, size = read_description(f"devices[{at}]", given)
    return size if kind == "cuda" else f"{kind}:{size}"
