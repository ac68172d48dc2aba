"""Memory of AMD's and Intel's cards as the kernel counts it, in ``/proc/PID/fdinfo`` and in ``/sys``.

What :mod:`moebind.bench.nvml` asks NVIDIA's driver, the kernel tells of its own (``amdgpu``, ``i915``, ``xe``):
what a process holds on a card, with what the driver keeps for it. No package and no rights are needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from moebind._core import checks
from moebind.bench.nvml import names_by_bus

__all__ = ["cards", "process_memory"]

_PROC, _SYS = Path("/proc"), Path("/sys")
#: A region's size; the first of these that a driver tells is taken. ``memory`` is amdgpu's old word for the first.
_KINDS = ("resident", "memory", "total")
_SIZE = re.compile(rf"^drm-({'|'.join(_KINDS)})-(\w+):[ \t]*(\d+)(?: (KiB|MiB))?$", re.MULTILINE)
_PLACE = re.compile(r"^drm-(pdev|client-id):[ \t]*(\S+)$", re.MULTILINE)
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20}


def process_memory(pid: int) -> dict[str, int] | None:
    """Bytes that a process holds on each card, as the kernel counts them.

    Parameters
    ----------
    pid
        Its id, as this process sees it.

    Returns
    -------
    dict[str, int] or None
        By llama.cpp's names of the cards, such as ``"Vulkan0"``, or by their places on the PCI bus, if it does not use
        them. Only those that the process has open. Of an integrated card, which has no memory of its own, what it holds
        of the machine's. None if the process is gone, or of somebody who does not show it.

    Notes
    -----
    A card is missing where the kernel is too old to tell, and with NVIDIA's own driver, which :mod:`moebind.bench.nvml`
    asks.
    """
    found = _held(checks.integer("pid", pid, 1))
    return None if found is None else _named(found)


def cards() -> dict[str, int]:
    """Bytes in use on each card, by anybody; only amdgpu tells. Names are those of :func:`process_memory`."""
    return _named(_used())


def snapshot(pid: int) -> tuple[dict[str, int], dict[str, int]]:
    """Of one moment: what a process holds on each card, and what of each is in use by anybody."""
    held, used = _held(pid) or {}, _used()
    return _named(held), _named(used)


def _held(pid: int) -> dict[str, int] | None:
    """By places on the bus."""
    clients: dict[tuple[str, str], dict[str, int]] = {}
    try:
        for text in _files(_PROC / str(pid) / "fdinfo"):
            place = dict(_PLACE.findall(text))
            sizes = _regions(text)
            if len(place) == 2 and sizes:
                # A file that was duplicated is the same client, and the same memory.
                clients[place["pdev"].lower(), place["client-id"]] = sizes
    except OSError:
        return None
    found: dict[str, int] = {}
    for (bus, _), sizes in clients.items():
        found[bus] = found.get(bus, 0) + _on_card(sizes)
    return found


def _files(folder: Path) -> Iterator[str]:
    for path in list(folder.iterdir()):
        with suppress(FileNotFoundError):  # closed in between
            yield path.read_text(encoding="utf-8", errors="replace")


def _regions(text: str) -> dict[str, int]:
    """Bytes by region, each in the way that says most."""
    told = {(kind, region): int(size) * _UNITS[unit] for kind, region, size, unit in _SIZE.findall(text)}
    regions = {region for _, region in told}
    return {region: next(told[kind, region] for kind in _KINDS if (kind, region) in told) for region in regions}


def _on_card(sizes: dict[str, int]) -> int:
    """The card's own memory (``vram``, ``local0``); of a card that has none, all that the processor does not keep."""
    own = [size for region, size in sizes.items() if region.startswith(("vram", "local"))]
    return sum(own) if own else sum(size for region, size in sizes.items() if region != "cpu")


def _used() -> dict[str, int]:
    found: dict[str, int] = {}
    for path in sorted(_SYS.glob("class/drm/card[0-9]*/device/mem_info_vram_used")):
        with suppress(OSError, ValueError):
            found[os.path.basename(os.path.realpath(path.parent)).lower()] = int(path.read_text(encoding="ascii"))
    return found


def _named(found: dict[str, int]) -> dict[str, int]:
    names = names_by_bus() if found else {}
    return {names.get(bus, bus): size for bus, size in found.items()}
