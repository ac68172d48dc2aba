"""What a wheel is built with: for processors alone, or with a backend for graphics cards as well."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["BROUGHT", "FLAVOURS", "Flavour"]


@dataclass(frozen=True)
class Flavour:
    """A kind of wheel.

    Parameters
    ----------
    environment
        What the build is told, in variables (docs/build.md).
    brought
        The libraries that are not in the wheel: the driver's, or those that pip's packages bring.
    """

    environment: dict[str, str]
    brought: tuple[str, ...] = field(default=())


FLAVOURS = {
    "cpu": Flavour({"MOEBIND_CUDA": "OFF", "MOEBIND_VULKAN": "OFF"}),
    "vulkan": Flavour({"MOEBIND_CUDA": "OFF", "MOEBIND_VULKAN": "ON"}, ("libvulkan.so.1",)),
    "cuda13": Flavour(
        {"MOEBIND_CUDA": "PIP", "MOEBIND_VULKAN": "OFF"},
        ("libcuda.so.1", "libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13"),
    ),
}
#: All of these, in order.
BROUGHT = tuple(sorted({name for flavour in FLAVOURS.values() for name in flavour.brought}))
