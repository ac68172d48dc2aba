"""What of the machine's memory this process may use, as the files of /proc and of control groups say."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from moebind.backend import host_memory
from moebind.backend.host_memory import HostMemory

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 64 GiB, of which 40 are available."""
    monkeypatch.setattr(host_memory, "PROC", str(tmp_path / "proc"))
    monkeypatch.setattr(host_memory, "CGROUPS", str(tmp_path / "cgroup"))
    write(tmp_path / "proc/meminfo", f"MemTotal: {64 * 2**20} kB\nMemFree: 5 kB\nMemAvailable: {40 * 2**20} kB\n")
    return tmp_path


def write(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_this_machine() -> None:
    found = host_memory.host_memory()
    assert 0 < found.free <= found.capacity <= psutil.virtual_memory().total


def test_without_groups(machine: Path) -> None:
    assert host_memory.host_memory() == HostMemory(64 * GIB, 40 * GIB)


def test_version_2(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "0::/a/b")
    write(machine / "cgroup/a/b/memory.max", "max")
    write(machine / "cgroup/a/memory.max", 8 * GIB)
    write(machine / "cgroup/a/memory.current", 3 * GIB)
    write(machine / "cgroup/a/memory.stat", f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB // 2}")
    found = host_memory.host_memory()
    assert (found.capacity, found.free) == (8 * GIB, 8 * GIB - 3 * GIB + GIB + GIB // 2)
    assert found.limit.endswith("/cgroup/a")


def test_version_1(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/x/y\n0::/")
    write(machine / "cgroup/memory/x/y/memory.limit_in_bytes", 2**63 - 4096)
    write(machine / "cgroup/memory/x/memory.limit_in_bytes", 2 * GIB)
    write(machine / "cgroup/memory/x/memory.usage_in_bytes", GIB)
    write(machine / "cgroup/memory/x/memory.stat", f"total_inactive_file {GIB // 4}\ntotal_active_file 0")
    found = host_memory.host_memory()
    assert (found.capacity, found.free) == (2 * GIB, GIB + GIB // 4)


def test_inside_a_container_the_mount_is_the_group(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "0::/docker/0123456789")
    write(machine / "cgroup/memory.max", 4 * GIB)
    write(machine / "cgroup/memory.current", 5 * GIB)
    assert host_memory.host_memory() == HostMemory(4 * GIB, 0, f"the control group {machine}/cgroup")


def test_what_is_free_can_be_the_tighter_one(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "0::/")
    write(machine / "cgroup/memory.max", 63 * GIB)
    write(machine / "cgroup/memory.current", 62 * GIB)
    found = host_memory.host_memory()
    assert (found.capacity, found.free) == (63 * GIB, GIB)


def with_swap(machine: Path, size: int) -> None:
    with open(machine / "proc/meminfo", "a", encoding="utf-8") as file:
        file.write(f"SwapTotal: {size // 1024} kB\n")


def test_swap_without_groups(machine: Path) -> None:
    with_swap(machine, 16 * GIB)
    assert host_memory.host_memory() == HostMemory(64 * GIB, 40 * GIB, swap=16 * GIB)


@pytest.mark.parametrize(("own", "above", "swap"), [("max", "max", 16), (0, "max", 0), (20 * GIB, 3 * GIB, 3)])
def test_swap_of_version_2(machine: Path, own: int | str, above: int | str, swap: int) -> None:
    with_swap(machine, 16 * GIB)
    write(machine / "proc/self/cgroup", "0::/a/b")
    write(machine / "cgroup/a/b/memory.max", 8 * GIB)
    write(machine / "cgroup/a/b/memory.swap.max", own)
    write(machine / "cgroup/a/memory.swap.max", above)
    found = host_memory.host_memory()
    assert (found.capacity, found.swap) == (8 * GIB, swap * GIB)


@pytest.mark.parametrize(("both", "swap"), [(None, 16), (2**63 - 4096, 16), (8 * GIB, 0), (11 * GIB, 3)])
def test_swap_of_version_1(machine: Path, both: int | None, swap: int) -> None:
    with_swap(machine, 16 * GIB)
    write(machine / "proc/self/cgroup", "4:memory:/x")
    write(machine / "cgroup/memory/x/memory.limit_in_bytes", 8 * GIB)
    if both is not None:  # else it is not counted
        write(machine / "cgroup/memory/x/memory.memsw.limit_in_bytes", both)
    found = host_memory.host_memory()
    assert (found.capacity, found.swap) == (8 * GIB, swap * GIB)


@pytest.mark.parametrize("text", ["", "nonsense", "1:2", "0::", "::::", "\xff\xfe"])
def test_files_that_make_no_sense(machine: Path, text: str) -> None:
    write(machine / "proc/self/cgroup", text)
    write(machine / "cgroup/memory.max", text)
    assert host_memory.host_memory().free == 40 * GIB


def test_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "PROC", str(tmp_path))
    assert host_memory.host_memory().free > 0
