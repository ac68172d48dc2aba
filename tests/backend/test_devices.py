"""Devices, and what is true of the whole process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import moebind
from moebind import Model, ModelParams, MoebindError, lib


def test_process_level_functions() -> None:
    moebind.init()
    moebind.init()
    with pytest.raises(MoebindError, match="too late"):
        moebind.init(moebind.NumaStrategy.DISTRIBUTE)
    cpu = moebind.devices()[0]
    assert cpu.type is moebind.DeviceType.CPU
    assert 0 < cpu.memory_free <= cpu.memory_total == cpu.capacity
    assert moebind.max_devices() == 16
    assert {"CPU", "RPC"} <= {*moebind.backends()}
    assert moebind.supports_mmap()
    assert moebind.supports_rpc()
    assert isinstance(moebind.supports_mlock(), bool)
    assert isinstance(moebind.supports_gpu_offload(), bool)
    assert moebind.time_us() <= moebind.time_us()
    assert "CPU" in moebind.system_info()
    assert moebind.llama_cpp_version == bytes(moebind.ffi.string(lib.llama_version())).decode()
    with pytest.raises(NotADirectoryError):
        moebind.load_backends("/nowhere")


def test_default_devices_are_those_that_a_model_takes(tiny_path: Callable[..., Path], device: moebind.Device) -> None:
    with Model.load_from_file(tiny_path(n_expert=4), ModelParams(n_gpu_layers=-1)) as model:
        assert list(model.devices) == moebind.default_devices()
    assert device in moebind.default_devices()
