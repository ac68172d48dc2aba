"""Conditions of a measurement: the file, the build, the machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from moebind._core.atomic_files import signature, write_whole
from moebind._core.native import decoded, lib, llama_cpp_version
from moebind._core.version import __version__
from moebind.backend.devices import describe, local_gpus, native_devices, system_info
from moebind.diagnosis import facts

__all__ = ["build", "checksums", "machine_record", "now", "processor"]

_BLOCK = 16 * 2**20


def now() -> str:
    """The date and time, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def build() -> dict[str, str]:
    """Versions of moebind and llama.cpp, without touching a device: asking one would take memory on it."""
    return {
        "moebind": __version__,
        "llama_cpp": llama_cpp_version,
        "commit": decoded(lib.ggml_commit()),
        "cuda": decoded(lib.moebind_built(b"CUDA")),
        "vulkan": decoded(lib.moebind_built(b"Vulkan")),
        "system_info": system_info(),
    }


def processor() -> str:
    """The processor's name."""
    names = {"model name", "Hardware", "Processor"}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() in names and value.strip():
                    return value.strip()
    except OSError:
        pass
    return platform.machine()


def installed() -> list[str]:
    """The devices of this machine other than the processor, without asking them how much memory they have."""
    return [
        f"{decoded(lib.ggml_backend_dev_name(native))}: {decoded(lib.ggml_backend_dev_description(native))}"
        for native in local_gpus()
    ]


def machine_record() -> dict[str, Any]:
    """Processor, memory, devices and driver, as the process that measures sees them."""
    found = facts.read_facts()
    return {
        "processor": processor(),
        "cores": found.cores,
        "cores_allowed": found.cores_allowed,
        "core_quota": found.core_quota,
        "memory_total": found.memory_total,
        "memory_capacity": found.memory.capacity,
        "driver": found.nvidia_driver,
        "openmp": found.openmp,
        "system": platform.platform(),
        "python": platform.python_version(),
        "devices": [
            {
                "name": device.name,
                "description": device.description,
                "backend": device.backend,
                "type": device.type.name,
                "memory_total": device.memory_total,
                "capacity": device.capacity,
            }
            for device in (describe(at, native) for at, native in enumerate(native_devices()))
        ],
    }


def checksums(
    paths: Sequence[str], cache: str | None, progress: Callable[[float], None] = lambda fraction: None
) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each file.

    ``cache`` is a JSON file that remembers those of files that were not changed since, by device, number, size and time
    of change; None: nothing is remembered.
    """
    known = _read_cache(cache)
    total = sum(os.path.getsize(path) for path in paths)
    done = 0
    found: list[dict[str, Any]] = []
    for path in paths:
        full, state = os.path.realpath(path), list(signature(path))
        entry = known.get(full)
        if not isinstance(entry, Mapping) or entry.get("signature") != state:
            digest = hashlib.sha256()
            with open(path, "rb", buffering=0) as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
                    done += len(block)
                    progress(done / max(total, 1))
            known[full] = entry = {"signature": state, "sha256": digest.hexdigest()}
        else:
            done += state[2]
        found.append({"name": os.path.basename(path), "size": state[2], "sha256": entry["sha256"]})
    if cache is not None:
        write_whole(cache, [json.dumps(known, indent=1).encode()])
    return found


def _read_cache(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def driver() -> str | None:
    """The version of NVIDIA's driver."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8", errors="replace") as file:
            return facts.driver_of(file.read())
    except OSError:
        return None
