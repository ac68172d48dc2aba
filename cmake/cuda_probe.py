"""What CMake asks Python about CUDA: where pip's packages put a toolkit, and which cards are there.

Two lines are printed: folders, then compute capabilities such as ``8.6``, each separated by semicolons.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

#: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
MAJOR, MINOR = 75, 76


def pip_toolkits() -> list[str]:
    """Folders like ``site-packages/nvidia/cu13``, newest first. pip's build environments are on the path, too."""
    found = {folder for place in sys.path if place for folder in Path(place).glob("nvidia/cu[0-9][0-9]")}
    return [str(folder) for folder in sorted(found, key=lambda folder: folder.name, reverse=True)]


def capabilities() -> list[str]:
    """Of every card that the driver shows; empty without a driver. No context is made on any."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    found = set()
    for index in range(count.value):
        device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
        failed = driver.cuDeviceGet(ctypes.byref(device), index)
        failed |= driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
        failed |= driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
        if not failed:
            found.add((major.value, minor.value))
    return [f"{major}.{minor}" for major, minor in sorted(found)]


if __name__ == "__main__":
    print(";".join(pip_toolkits()))
    print(";".join(capabilities()))
