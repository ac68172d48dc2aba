"""Devices that need not be in this machine: how they are described, and what a plan takes them to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import shapes
from hypothesis import given
from hypothesis import strategies as st

import moebind
from conftest import SMALL
from moebind import ContextCreationError, Device, DeviceType, GgmlType, ModelParams
from moebind.placement.described_devices import is_description, read_description, written

MakeTiny = Callable[..., Path]
MIB = 2**20


@pytest.mark.parametrize(
    ("given", "kind", "size"),
    [
        (2**30, "cuda", 2**30),
        ("24GiB", "cuda", 24 * 2**30),
        ("cuda:24G", "cuda", 24 * 2**30),
        ("vulkan:16GiB", "vulkan", 2**34),
        (" Vulkan : 512 MB ", "vulkan", 512 * 10**6),
    ],
)
def test_descriptions(given: str | int, kind: str, size: int) -> None:
    assert read_description("devices[0]", given) == (kind, size)
    assert read_description("devices[0]", written(0, given)) == (kind, size)
    if isinstance(given, str):
        assert is_description(given)


@pytest.mark.parametrize(
    "given", ["vulkan:", "vulkan", "metal:16GiB", "vulkan:16", "vulkan:x", "16GiB:vulkan", "", ":16GiB", "cuda0"]
)
def test_what_describes_nothing(tiny_path: MakeTiny, given: str) -> None:
    with pytest.raises(ValueError, match=r"devices\[0\] is "):
        moebind.plan(tiny_path(), devices=[given])


def test_the_address_of_a_worker_describes_nothing(tiny_path: MakeTiny) -> None:
    for address in ("127.0.0.1:50052", "10.0.0.1:1", "host:50052"):
        assert not is_description(address)
        with pytest.raises(ValueError, match="it takes a size such as '24GiB', or a Device"):
            moebind.plan(tiny_path(), devices=[address])


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        kind, size = read_description("x", text)
    except ValueError:
        return
    assert kind in {"cuda", "vulkan"}
    assert size >= 1
    assert is_description(text)


def test_a_small_model_takes_the_same_on_both(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_expert=4)
    for change in (ModelParams(), ModelParams().with_cpu_moe_all()):
        cuda, vulkan = (moebind.plan(path, change, SMALL, devices=[each]) for each in ("16GiB", "vulkan:16GiB"))
        assert [each.name for each in vulkan.devices] == ["GPU0", "Host"]
        assert vulkan.devices[0].capacity == 2**34
        assert {buffer.name for buffer in vulkan.host.buffers} == {buffer.name for buffer in cuda.host.buffers}
        for part in ("model", "context", "compute"):
            assert abs(getattr(cuda.devices[0], part) - getattr(vulkan.devices[0], part)) < MIB


def test_a_cache_that_vulkan_does_not_write_cannot_be_made(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_embd=256, n_head=4, n_head_kv=2)
    moebind.plan(
        path, ModelParams(), SMALL.with_type_k(GgmlType.Q8_0).with_type_v(GgmlType.Q8_0), devices=["vulkan:1GiB"]
    )
    other = SMALL.with_type_k(GgmlType.MXFP4).with_type_v(GgmlType.MXFP4)
    moebind.plan(path, ModelParams(), other, devices=["1GiB"])
    with pytest.raises(ContextCreationError, match=r"cache_k_l0.*cannot run the operation \(SET_ROWS\)"):
        moebind.plan(path, ModelParams(), other, devices=["vulkan:1GiB"])
    moebind.plan(path, ModelParams(), other.with_offload_kqv(False), devices=["vulkan:1GiB"])


@pytest.mark.parametrize(("n_expert", "differs"), [(8, False), (160, True)])
def test_a_tensor_that_is_too_large_for_vulkan_stays_on_the_host(tmp_path: Path, n_expert: int, differs: bool) -> None:
    """No shader's buffer may have 4 GiB: with 160 experts, a matrix of a layer has 4.9."""
    shape = replace(shapes.SHAPES["mixtral-8x7b-q4_k_m"], n_layer=2, n_expert=n_expert)
    path = shapes.write(tmp_path / "model.gguf", shape)
    cuda, vulkan = (moebind.plan(path, ModelParams(), SMALL, devices=[each]) for each in ("1TiB", "vulkan:1TiB"))
    assert (cuda.devices[0].model - vulkan.devices[0].model > 2**32) is differs


def test_one_card_is_not_planned_for_twice(tiny_path: MakeTiny) -> None:
    two = [
        Device(at, name, "", name[:-1], DeviceType.GPU, 1, 1, 1, "0000:01:00.0")
        for at, name in enumerate(("CUDA0", "Vulkan0"))
    ]
    with pytest.raises(ValueError, match=r"CUDA0 and Vulkan0, which are one card \(0000:01:00\.0\).*give one of them"):
        ModelParams(devices=two)
    assert ModelParams(devices=[two[1]]).devices == (two[1],)


def test_a_saved_fit_has_the_description(tiny_path: MakeTiny, tmp_path: Path) -> None:
    path = tiny_path(n_expert=4)
    found = moebind.fit(path, devices=["vulkan:8GiB", "4GiB"], n_ctx=256)
    found.save(tmp_path / "fit.json")
    from moebind.placement.saved import Saved

    saved = Saved.read(tmp_path / "fit.json")
    assert saved.devices == (f"vulkan:{2**33}", 2**32)
    again = moebind.plan(path, saved.model_params, saved.context_params, devices=saved.natives())
    assert [device.capacity for device in again.devices[:-1]] == [2**33, 2**32]


def test_what_is_no_size_may_be_a_device() -> None:
    with pytest.raises(ValueError, match=r"^devices\[0\] is 'RPC0'; it takes a size such as '24GiB', or a Device"):
        read_description("devices[0]", "RPC0")
