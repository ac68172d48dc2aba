"""Devices, and what is true of the whole process."""

from __future__ import annotations

import pytest

import moebind
from moebind import MoebindError, lib


def test_process_level_functions() -> None:
    moebind.init()
    moebind.init()
    with pytest.raises(MoebindError, match="too late"):
        moebind.init(moebind.NumaStrategy.DISTRIBUTE)
    cpu = moebind.devices()[0]
    assert cpu.type is moebind.DeviceType.CPU
    assert 0 < cpu.memory_free <= cpu.memory_total == cpu.capacity
    assert moebind.max_devices() == 16
    assert moebind.supports_mmap()
    assert moebind.supports_rpc()
    assert isinstance(moebind.supports_mlock(), bool)
    assert isinstance(moebind.supports_gpu_offload(), bool)
    assert moebind.time_us() <= moebind.time_us()
    assert "CPU" in moebind.system_info()
    assert moebind.llama_cpp_version == bytes(moebind.ffi.string(lib.llama_version())).decode()
    with pytest.raises(NotADirectoryError):
        moebind.load_backends("/nowhere")
