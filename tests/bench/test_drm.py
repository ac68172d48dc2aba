"""The kernel's view of AMD's and Intel's cards, from files as their drivers write them, and from this machine's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moebind.bench import drm

MIB = 2**20
PID = 4711

#: As amdgpu wrote it at first; a discrete card, with pinned memory of the host's in ``gtt``.
AMDGPU = """\
pos:\t0
flags:\t02100002
mnt_id:\t26
ino:\t447
drm-driver:\tamdgpu
drm-client-id:\t{client}
drm-pdev:\t0000:0A:00.0
drm-memory-vram:\t{size} KiB
drm-memory-gtt: \t 4096 KiB
drm-memory-cpu: \t 128 KiB
drm-engine-compute:\t1234 ns
"""
#: As it does now: what was asked for, and what of it is there.
AMDGPU_NOW = """\
drm-driver:\tamdgpu
drm-client-id:\t12
drm-pdev:\t0000:0a:00.0
drm-total-cpu:\t0
drm-resident-cpu:\t0
drm-total-vram:\t9 MiB
drm-shared-vram:\t0
drm-resident-vram:\t3 MiB
drm-memory-vram:\t4096 KiB
"""
#: xe counts what it gave, by tiles.
XE = """\
drm-driver:\txe
drm-client-id:\t3
drm-pdev:\t0000:03:00.0
drm-total-system:\t512 KiB
drm-total-vram0:\t2 MiB
drm-total-vram1:\t1 MiB
drm-cycles-ccs:\t99
"""
I915 = """\
drm-driver:\ti915
drm-client-id:\t3
drm-pdev:\t0000:00:02.0
drm-total-system0:\t8 MiB
drm-resident-system0:\t5 MiB
drm-total-stolen-system0:\t0
"""
FILE = "pos:\t0\nflags:\t0100000\nmnt_id:\t29\n"
#: An old i915, which tells no sizes.
SILENT = "drm-driver:\ti915\ndrm-client-id:\t1\ndrm-pdev:\t0000:00:02.0\ndrm-engine-render:\t9288864723 ns\n"
ODD = "drm-driver:\tnew\ndrm-client-id:\t1\ndrm-pdev:\t0000:0b:00.0\ndrm-memory-vram:\tmuch\ndrm-memory-:\t1\nlost\n\n:"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for /proc and /sys."""
    monkeypatch.setattr(drm, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(drm, "_SYS", tmp_path / "sys")
    return tmp_path


def process(machine: Path, *files: str) -> None:
    folder = machine / "proc" / str(PID) / "fdinfo"
    folder.mkdir(parents=True)
    for number, text in enumerate(files):
        (folder / str(number)).write_text(text, encoding="utf-8")


def card(machine: Path, number: int, bus: str, used: str | None) -> None:
    device = machine / "sys/devices" / bus
    device.mkdir(parents=True)
    if used is not None:
        (device / "mem_info_vram_used").write_text(used, encoding="ascii")
    folder = machine / f"sys/class/drm/card{number}"
    folder.mkdir(parents=True)
    (folder / "device").symlink_to(device)


@pytest.mark.parametrize(
    ("files", "held"),
    [
        ([FILE], {}),
        ([FILE, SILENT], {}),
        ([ODD], {}),
        ([AMDGPU.format(client=12, size=2048)], {"0000:0a:00.0": 2 * MIB}),
        # A duplicated file is one client; two contexts of a process are two.
        ([AMDGPU.format(client=12, size=2048)] * 2, {"0000:0a:00.0": 2 * MIB}),
        ([AMDGPU.format(client=n, size=2048) for n in (12, 13)], {"0000:0a:00.0": 4 * MIB}),
        ([AMDGPU_NOW], {"0000:0a:00.0": 3 * MIB}),
        ([XE], {"0000:03:00.0": 3 * MIB}),
        ([I915], {"0000:00:02.0": 5 * MIB}),
        # The same number of a client on two cards is two clients.
        ([XE, I915, FILE], {"0000:03:00.0": 3 * MIB, "0000:00:02.0": 5 * MIB}),
    ],
    ids=["no card", "no sizes", "odd lines", "amdgpu", "twice", "two", "amdgpu now", "xe", "integrated", "two cards"],
)
def test_a_process(machine: Path, files: list[str], held: dict[str, int]) -> None:
    process(machine, *files)
    assert drm.process_memory(PID) == held
    assert drm.snapshot(PID) == (held, {})


def test_cards_name_themselves_by_llama_cpps_names(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drm, "names_by_bus", lambda: {"0000:0a:00.0": "Vulkan1"})
    process(machine, AMDGPU_NOW, XE)
    card(machine, 0, "0000:0a:00.0", "123456\n")
    card(machine, 1, "0000:03:00.0", None)  # xe and i915 do not tell
    card(machine, 2, "0000:0c:00.0", "nonsense")
    assert drm.process_memory(PID) == {"Vulkan1": 3 * MIB, "0000:03:00.0": 3 * MIB}
    assert drm.cards() == {"Vulkan1": 123456}
    assert drm.snapshot(PID) == (drm.process_memory(PID), drm.cards())


def test_a_process_that_is_gone_or_hidden(machine: Path) -> None:
    assert drm.process_memory(PID) is None
    assert drm.snapshot(PID) == ({}, {})
    assert drm.cards() == {}


def test_this_process() -> None:
    """On this machine, whatever it has."""
    held = drm.process_memory(os.getpid())
    assert held is not None
    assert all(size >= 0 for size in held.values())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert drm.process_memory(child.pid) == {}
    child.communicate(b"\n")
    assert drm.process_memory(child.pid) is None


@pytest.mark.parametrize("pid", [0, -1, "1", 1.5, True])
def test_bad_process_ids(pid: object) -> None:
    with pytest.raises((TypeError, ValueError), match="pid"):
        drm.process_memory(pid)  # type: ignore[arg-type]
