"""Facts about this machine, this process and this build, for :mod:`moebind.diagnosis.findings` to judge."""

from __future__ import annotations

import ctypes
import glob
import math
import os
import platform
import resource
from dataclasses import dataclass, field

from moebind._core.native import LIBRARIES, decoded, lib, llama_cpp_version
from moebind.backend.devices import Device, devices, local_gpus, system_info
from moebind.backend.host_memory import HostMemory, host_memory

__all__ = ["Facts", "core_quota", "no_gpu_is_meant", "nvidia_cards", "read_facts"]

#: CAP_IPC_LOCK: locks memory without a limit.
IPC_LOCK = 14
#: Vendors of cards, as the PCI bus has them: NVIDIA; AMD and Intel.
NVIDIA, OTHERS = "0x10de", ("0x1002", "0x8086")
#: Environment variables that change what Vulkan shows. The loader of backends (native/replaced/backend_loader.cpp) has
#: those of them with which it looks for drivers where there is no card: it is a part of ggml's library, which knows
#: nothing of this one. A test compares both lists.
VULKAN = (
    "GGML_DISABLE_VULKAN",
    "GGML_VK_VISIBLE_DEVICES",
    "VK_ADD_DRIVER_FILES",
    "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES",
    "VK_LOADER_DRIVERS_SELECT",
)
#: Environment variables of OpenMP's that change how llama.cpp's threads run.
OPENMP = (
    "OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY",
    "OMP_WAIT_POLICY",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """The facts that were read. The defaults are those of a machine on which nothing is remarkable."""

    # the build
    llama_cpp: str = ""
    commit: str = ""
    backends: tuple[str, ...] = ("CPU", "RPC")
    cuda_verdict: str = "out: MOEBIND_CUDA=OFF"
    cuda_failure: str = ""
    cpu_features: frozenset[str] = frozenset()
    cpu_variants: bool = False

    # devices, and what there is of NVIDIA's
    devices: tuple[Device, ...] = ()
    nvidia_cards: int = 0
    nvidia_driver: str | None = None
    libcuda: bool = False
    nvidia_nodes: dict[str, bool] = field(default_factory=dict)
    cuda_visible_devices: str | None = None

    # what there is of Vulkan
    vulkan_verdict: str = "out: MOEBIND_VULKAN=OFF"
    vulkan_failure: str = ""
    libvulkan: bool = False
    vulkan_drivers: tuple[str, ...] = ()
    other_cards: int = 0
    render_nodes: dict[str, bool] = field(default_factory=dict)
    vulkan_variables: dict[str, str] = field(default_factory=dict)

    # the processor
    architecture: str = "x86_64"
    cpu_flags: frozenset[str] = frozenset()
    cores: int = 1
    cores_allowed: int = 1
    core_quota: float | None = None
    load_average: float = 0.0
    default_threads: int = 1
    openmp: dict[str, str] = field(default_factory=dict)

    # memory, in bytes; None: no limit
    memory_total: int = 2**34
    memory: HostMemory = field(default_factory=lambda: HostMemory(2**34, 2**34))
    address_space: int | None = None
    address_space_used: int = 0
    lockable: int | None = None


def read_facts() -> Facts:
    """Look. What cannot be read is left at its default."""
    found = tuple(devices())
    allowed = len(os.sched_getaffinity(0))
    return Facts(
        llama_cpp=llama_cpp_version,
        commit=decoded(lib.ggml_commit()),
        backends=tuple(
            dict.fromkeys(
                decoded(lib.ggml_backend_reg_name(lib.ggml_backend_reg_get(i)))
                for i in range(lib.ggml_backend_reg_count())
            )
        ),
        cuda_verdict=decoded(lib.moebind_built(b"CUDA")),
        cuda_failure=decoded(lib.moebind_unused(b"CUDA")),
        cpu_features=features_of(system_info()),
        cpu_variants=bool(glob.glob(f"{glob.escape(str(LIBRARIES))}/libggml-cpu-*.so")),
        devices=found,
        nvidia_cards=nvidia_cards(),
        nvidia_driver=driver_of(_read("/proc/driver/nvidia/version")),
        libcuda=_loads("libcuda.so.1"),
        nvidia_nodes=_usable("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/nvidia-uvm"),
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        vulkan_verdict=decoded(lib.moebind_built(b"Vulkan")),
        vulkan_failure=decoded(lib.moebind_unused(b"Vulkan")),
        libvulkan=_loads("libvulkan.so.1"),
        vulkan_drivers=_vulkan_drivers(),
        other_cards=_cards(*OTHERS),
        render_nodes=_usable("/dev/dri/renderD*"),
        vulkan_variables={name: os.environ[name] for name in VULKAN if name in os.environ},
        architecture=platform.machine(),
        cpu_flags=flags_of(_read("/proc/cpuinfo")),
        cores=os.cpu_count() or allowed,
        cores_allowed=allowed,
        core_quota=core_quota(),
        load_average=os.getloadavg()[0],
        default_threads=int(lib.moebind_default_n_threads()),
        openmp={name: os.environ[name] for name in OPENMP if name in os.environ},
        memory_total=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        memory=host_memory(),
        address_space=_limit(resource.RLIMIT_AS),
        address_space_used=os.sysconf("SC_PAGE_SIZE") * int((_read("/proc/self/statm").split() or ["0"])[0]),
        lockable=lockable(),
    )


def features_of(information: str) -> frozenset[str]:
    """The features that ``system_info()`` lists as there."""
    pairs = [part.rpartition(":")[2].split("=") for part in information.split("|")]
    return frozenset(pair[0].strip() for pair in pairs if len(pair) == 2 and pair[1].strip() not in {"", "0"})


def flags_of(cpuinfo: str) -> frozenset[str]:
    """The processor's flags; on ARM they are called features."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def driver_of(text: str) -> str | None:
    """The version in ``/proc/driver/nvidia/version``."""
    for word in text.partition("\n")[0].split():
        if word[0].isdigit() and "." in word:
            return word
    return None


def locks_freely(status: str) -> bool:
    """Whether ``/proc/self/status`` tells of the right to lock any amount of memory."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> IPC_LOCK & 1)
    return False


def lockable() -> int | None:
    """Bytes that this process may lock in memory; None: any number."""
    return None if locks_freely(_read("/proc/self/status")) else _limit(resource.RLIMIT_MEMLOCK)


def quota_of(text: str, period: str = "") -> float | None:
    """Cores that a control group grants: of ``cpu.max``, or of version 1's quota and period. None: no limit."""
    quota, _, after = text.strip().partition(" ")
    try:
        microseconds, length = int(quota), int(after or period)
    except ValueError:
        return None
    return microseconds / length if microseconds > 0 and length > 0 else None


def core_quota() -> float | None:
    """The tightest quota from this process's control group to the root."""
    found = [math.inf]
    for line in _read("/proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        version_1 = "cpu" in controllers.split(",")
        if not version_1 and (number != "0" or controllers):
            continue
        mount = "/sys/fs/cgroup/cpu" if version_1 else "/sys/fs/cgroup"
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            folder = "/".join([mount, *parts[:depth]])
            if version_1:
                quota = quota_of(_read(f"{folder}/cpu.cfs_quota_us"), _read(f"{folder}/cpu.cfs_period_us"))
            else:
                quota = quota_of(_read(f"{folder}/cpu.max"))
            found += [] if quota is None else [quota]
    return min(found) if min(found) < math.inf else None


def nvidia_cards() -> int:
    """NVIDIA's display controllers and accelerators on the PCI bus."""
    return _cards(NVIDIA)


def no_gpu_is_meant() -> bool:
    """Whether nobody needs a warning that there is no GPU: there is no card either."""
    return not local_gpus() and not nvidia_cards()


def _cards(*vendors: str) -> int:
    """Display controllers and accelerators of these vendors."""
    return sum(
        _read(path).strip() in vendors and _read(f"{os.path.dirname(path)}/class").startswith("0x03")
        for path in glob.glob("/sys/bus/pci/devices/*/vendor")
    )


def _usable(*patterns: str) -> dict[str, bool]:
    """Device files, and whether this user may read and write them."""
    paths = sorted(path for pattern in patterns for path in glob.glob(pattern))
    return {path: os.access(path, os.R_OK | os.W_OK) for path in paths}


def _vulkan_drivers() -> tuple[str, ...]:
    """Names of the files that Vulkan's loader finds drivers by, wherever it looks when nothing else is said."""
    homes = [os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "/etc", "/usr/local/etc"]
    homes += (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    found = {os.path.basename(path) for home in homes for path in glob.glob(f"{glob.escape(home)}/vulkan/icd.d/*.json")}
    return tuple(sorted(found))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _limit(what: int) -> int | None:
    soft, _ = resource.getrlimit(what)
    return None if soft == resource.RLIM_INFINITY else soft


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
