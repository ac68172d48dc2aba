"""Models that commands load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Capture, run
from hub_server import Hub

import moebind
from moebind import Device
from moebind.cli import loading
from moebind.cli.given import Given
from moebind.cli.loading import load, open_model, with_devices

MakeTiny = Callable[..., Path]


def given(**values: object) -> Given:
    return Given({"n_gpu_layers": "0", "threads": 1, **values})


def test_a_file(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    model, context, _ = load(str(path), given(), ["none"])
    with model:
        assert model.path == str(path)
        assert (context.n_ctx, context.n_threads) == (4096, 1)
    model, context, _ = load(str(path), given(n_ctx="256"), ["none"], fitted=True)
    with model:
        assert context.n_ctx == 256


def test_layers_that_are_left_open_in_words(tiny_path: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """``-ngl auto`` is as without it: no warning of a device that nobody asked for. ``-ngl all`` has a note already."""
    monkeypatch.setattr(loading, "no_gpu_is_meant", lambda: True)
    monkeypatch.setattr(loading, "default_devices", list)
    path = str(tiny_path(n_expert=4))
    for value, layers in ((None, 0), ("auto", 0), ("all", 0)):
        params, _ = loading.computing(path, given(n_gpu_layers=value), None, 256)
        assert params.n_gpu_layers == layers


def test_an_address(hub: Hub) -> None:
    model, _, _ = load("hf://someone/tiny/Q4_K", given(), ["none"])
    with model:
        assert model.path.endswith("tiny-Q4_K.gguf")
    with pytest.raises(moebind.ModelNotFoundError, match="no GGUF file that matches 'Q9_K'"):
        load("hf://someone/tiny/Q9_K", given(), ["none"])


def test_what_is_left_open_is_fitted_to_a_device(tiny_path: MakeTiny, device: Device) -> None:
    path = tiny_path(n_expert=4, n_layer=3)
    model, _, _ = load(str(path), Given({"threads": 1, "n_ctx": "256"}), [device.name], fitted=True)
    with model:
        assert model.params.n_gpu_layers != 0
        assert model.params.devices is not None
        assert [each.name for each in model.params.devices] == [device.name]


def test_a_worker_is_where_layers_go(tiny_path: MakeTiny, device: Device) -> None:
    """Not only if it is asked for layer by layer: the devices of RPC servers are a machine's like its GPUs."""
    path = tiny_path(n_expert=4, n_layer=3)
    for fitted in (False, True):
        model, _, _ = load(
            str(path), Given({"threads": 1, "n_ctx": "256", "rpc": [device.description]}), None, fitted=fitted
        )
        with model:
            assert model.params.n_gpu_layers != 0
            assert device.name in [each.name for each in model.devices]


def test_a_worker_that_is_started_for_the_command(tiny_path: MakeTiny) -> None:
    path, mine = tiny_path(n_expert=4, n_layer=3), Given({"threads": 1, "n_ctx": "256", "n_gpu_layers": "all"})
    with mine.held:
        model, _, _ = load(str(path), mine, ["loopback"])
        with model:
            [used] = model.devices
            assert used.backend == "RPC"
            assert used in moebind.devices()
    assert used.name not in [each.name for each in moebind.devices()]
    assert mine.computing(None) is None
    assert mine.computing(["none"]) == []


def test_a_file_of_parameters_is_not_fitted(tiny_path: MakeTiny, device: Device, tmp_path: Path) -> None:
    path = tiny_path(n_expert=4, n_layer=3)
    saved = tmp_path / "mine.json"
    saved.write_text('{"model_params": {"n_gpu_layers": 1}, "context_params": {"n_ctx": 64}}', encoding="utf-8")
    model, context, _ = load(str(path), Given({"params": str(saved)}), [device.name], fitted=True)
    with model:
        assert (model.params.n_gpu_layers, context.n_ctx) == (1, 64)


def test_devices_that_are_only_described(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    for described in ("24GiB", "12GiB,24GiB"):
        with pytest.raises(ValueError, match="which describes a device, and this computes; it takes the name"):
            load(str(path), given(), [described])
    with pytest.raises(ValueError, match=r"--device is 'CUDA9'; it takes the name of a device that.*loopback"):
        load(str(path), given(), ["CUDA9"])
    assert with_devices(given().read(str(path)), by_user=False) == moebind.ModelParams(n_gpu_layers=0)


def test_a_fit_for_another_machine(tiny_path: MakeTiny, tmp_path: Path) -> None:
    """The devices that it was made for were only described: those that are here take their place."""
    path = tiny_path(n_expert=4)
    saved = tmp_path / "fit.json"
    moebind.fit(path, n_ctx=256, devices=["12GiB"], host="64GiB").save(saved)
    model, context, _ = load(str(path), Given({"params": str(saved)}), None)
    with model:
        assert context.n_ctx == 256
        assert all(device.name != "GPU0" for device in model.devices)


ENCODER = {"arch": "bert", "n_head_kv": 4, "n_ctx_train": 64}


@pytest.mark.parametrize(
    ("command", "shape", "arguments"),
    [
        ("embed", ENCODER, ["it is"]),
        ("rerank", {**ENCODER, "n_cls_out": 1}, ["it is", "a cat"]),
        ("routing", {"n_expert": 4}, ["-c", 256, "-p", "it is", "-n", 2]),
        ("cache", {"n_expert": 4}, ["-c", 256, "-p", "it is", "-n", 2]),
    ],
)
def test_commands_that_load_have_workers(
    command: str,
    shape: dict[str, object],
    arguments: list[object],
    tiny_path: MakeTiny,
    device: Device,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[list[str]] = []

    def opened(*given: Any) -> moebind.Model:
        model = open_model(*given)
        used.append([each.name for each in model.devices])
        return model

    monkeypatch.setattr(loading, "open_model", opened)
    path = tiny_path(**shape)
    assert run(command, path, *arguments, "-t", 1, "--rpc", device.description) == 0
    assert [device.name in each for each in used] == [True]
    capsys.readouterr()
    assert run(command, path, *arguments, "--rpc", "127.0.0.1:9") == 1
    assert "127.0.0.1:9" in capsys.readouterr().err
