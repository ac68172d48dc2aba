"""The GPU in the list of devices, for doctor, and for NVML."""

from __future__ import annotations

import pytest

import moebind
from moebind import Device, DeviceType


def test_the_device_is_listed_with_its_memory(gpu: Device) -> None:
    [listed] = [each for each in moebind.devices() if each.name == gpu.name]
    assert listed == gpu
    assert listed.type in {DeviceType.GPU, DeviceType.IGPU}
    assert 0 < listed.memory_free <= listed.memory_total == listed.capacity
    assert listed.description


@pytest.mark.card
def test_it_has_its_backends_name(gpu: Device) -> None:
    assert gpu.name == f"{gpu.backend}0"
    assert gpu.memory_total > 2**30
    assert moebind.supports_gpu_offload()


@pytest.mark.software
def test_doctor_lists_a_software_driver(gpu: Device) -> None:
    text = str(moebind.doctor())
    assert "Vulkan is in: headers " in text
    assert "lvp_icd" in text
    assert f"device {gpu.name}: llvmpipe" in text
    assert "no Vulkan device" not in text


@pytest.mark.driver
def test_doctor_has_nothing_against_it(gpu: Device) -> None:
    report = moebind.doctor()
    text = str(report)
    assert "CUDA is in" in text
    assert gpu.name in text
    assert gpu.description in text
    assert "no CUDA device" not in text
