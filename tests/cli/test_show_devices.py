"""moebind devices."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from commands import Capture, run

import moebind
from moebind import Device
from moebind.backend import devices


def test_a_table(capsys: Capture) -> None:
    assert run("devices") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["device", "backend", "type", "memory", "free", "layers", "description"]
    for device, line in zip(moebind.devices(), lines[1:], strict=False):
        assert line.split()[:3] == [device.name, device.backend, device.type.name]
    assert lines[-3] == f"Backends: {', '.join(moebind.backends())}."
    assert [line.split(" is ")[0] for line in lines[-2:]] == ["CUDA", "Vulkan"]


@pytest.mark.parametrize(
    ("unused", "state", "why"),
    [
        (b"no files (/dev/dri)", "; but it is not used: no files (/dev/dri)", "no files"),
        (b"libvulkan.so.1: cannot open", "; but it is not used: libvulkan.so.1: cannot open", "libvulkan.so.1"),
        (b"", "", "it sees no card"),
    ],
)
def test_why_a_backend_is_not_used(unused: bytes, state: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native = SimpleNamespace(
        moebind_built=lambda backend: b"in: headers of Vulkan", moebind_unused=lambda backend: unused
    )
    monkeypatch.setattr(devices, "lib", native)
    monkeypatch.setattr(devices, "init", lambda: None)
    monkeypatch.setattr(devices, "decoded", bytes.decode)
    monkeypatch.setattr(devices, "devices", list)
    assert devices.backend_state("Vulkan") == f"in: headers of Vulkan{state}"
    assert devices.why_no_card("Vulkan").startswith(f"Vulkan is not used: {why}")


def test_those_that_take_layers(device: Device, capsys: Capture) -> None:
    assert run("devices", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    taking = {each["name"] for each in told["devices"] if each["takes_layers"]}
    assert taking == {each.name for each in moebind.default_devices()} >= {device.name}
    assert {each["backend"] for each in told["devices"]} <= {*told["backends"]}
    assert told["host"]["free"] <= told["host"]["capacity"]
    assert run("devices") == 0
    assert "No device takes layers" not in capsys.readouterr().out


def test_servers_are_asked_and_left(capsys: Capture) -> None:
    before = moebind.devices()
    with moebind.loopback_device() as worker:
        endpoint = worker.description
        moebind.remove_rpc_server(endpoint)
        assert run("devices", "--rpc", endpoint, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert endpoint in {each["description"] for each in told["devices"] if each["takes_layers"]}
        assert moebind.devices() == before


@pytest.mark.parametrize(("server", "status"), [("127.0.0.1:1", 1), ("nowhere", 2), ("", 2)])
def test_servers_that_are_none(server: str, status: int, capsys: Capture) -> None:
    assert run("devices", "--rpc", server) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
