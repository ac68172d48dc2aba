"""The driver's view, through the real bindings: without a driver, and with a library that answers in its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moebind.bench import nvml

#: What NVML's C interface answers for two cards, of which a process with our id holds something on the second.
LIBRARY = r"""
#include <string.h>
#include <unistd.h>
typedef struct { char legacy[16]; unsigned domain, bus, device, id, sub; char busId[32]; } pci;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process;
static char cards[2];
int nvmlInitWithFlags(unsigned f) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "no such luck"; }
int nvmlSystemGetDriverVersion(char *to, unsigned n) { strcpy(to, "550.54"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned at, void **handle) { *handle = cards + at; return 0; }
int nvmlDeviceGetName(void *h, char *to, unsigned n) { strcpy(to, "A card"); return 0; }
int nvmlDeviceGetUUID(void *h, char *to, unsigned n) {
    strcpy(to, "GPU-0"); to[4] += h == cards + 1; return 0;
}
int nvmlDeviceGetPciInfo_v3(void *h, pci *to) { strcpy(to->busId, "00000000:C1:00.0"); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, memory *to) { to->total = 1000; to->used = h == cards ? 10 : 20; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, process *to) {
    if (*n < 2) { *n = 2; return 7; }
    *n = 2;
    to[0].pid = 1; to[0].used = 5;
    to[1].pid = h == cards ? 2 : getpid(); to[1].used = 15;
    return 0;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *n, process *to) { return 3; }
"""
ASK = """
import dataclasses, json, os
from moebind.bench import nvml
print(json.dumps([nvml.reason(), nvml.process_memory(os.getpid()), nvml.process_memory(2**22 - 1),
                  [dataclasses.asdict(each) for each in nvml.devices() or []]]))
"""


def test_a_machine_without_the_driver_says_so() -> None:
    if os.path.exists("/proc/driver/nvidia/version"):
        assert nvml.reason() is None
        assert nvml.devices()
        return
    assert "NVML says" in str(nvml.reason())
    assert nvml.devices() is None
    assert nvml.process_memory(os.getpid()) is None


def test_without_the_package() -> None:
    code = "import sys; sys.modules['pynvml'] = None\n" + ASK
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reason, memory, _, cards = json.loads(done.stdout)
    assert "moebind[bench]" in reason
    assert (memory, cards) == (None, [])


def test_cards_and_processes(tmp_path: Path) -> None:
    (tmp_path / "nvml.c").write_text(LIBRARY, encoding="utf-8")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
    )
    reason, ours, others, cards = json.loads(done.stdout)
    assert reason is None
    assert ours == {"GPU-1": 15}
    assert others == {}
    assert [card["used"] for card in cards] == [10, 20]
    assert cards[1] == {
        "name": "GPU-1",  # llama.cpp does not use it
        "product": "A card",
        "uuid": "GPU-1",
        "bus": "0000:c1:00.0",
        "total": 1000,
        "used": 20,
        "driver": "550.54",
    }


@pytest.mark.parametrize("pid", [0, -1, "1", 1.5, True])
def test_bad_process_ids(pid: object) -> None:
    with pytest.raises((TypeError, ValueError), match="pid"):
        nvml.process_memory(pid)  # type: ignore[arg-type]
