"""The cache of experts: used where it can be, refused in words where llama.cpp would fail, or silently make none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import CPU, SMALL
from moebind import Batch, ContextCreationError, ContextParams, Device, Model, ModelParams, ffi, lib

MakeTiny = Callable[..., Path]
#: Of the tiny model: bytes of one expert of a layer, gate, up and down.
EXPERT = 3 * 4 * 64 * 96
#: Buffers begin at such multiples on a worker that computes on the CPU.
ALIGNMENT = 64


def of_slots(n: int) -> int:
    """The bytes of a cache with so many slots: llama.cpp has one more, and each tensor is padded (here by nothing)."""
    assert EXPERT % (3 * ALIGNMENT) == 0
    return EXPERT * (n + 1)


def on(device: Device) -> ModelParams:
    """All layers on the device, all experts in plain host memory."""
    return ModelParams(n_gpu_layers=-1, devices=(device,), use_extra_bufts=False).with_cpu_moe_all()


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=8, n_layer=3)


@pytest.fixture(scope="module")
def cached(path: Path, device: Device) -> Iterator[Model]:
    with Model.load_from_file(path, on(device)) as model:
        yield model


def test_a_size_is_a_number_or_a_text() -> None:
    assert ContextParams().moe_cache_size == 0
    assert ContextParams(moe_cache_size="4GiB").moe_cache_size == 4 << 30  # type: ignore[arg-type]
    assert ContextParams().with_moe_cache_size("1.5MB") == ContextParams(moe_cache_size=1_500_000)
    with pytest.raises(ValueError, match="moe_cache_size is 4, which is so many bytes: give a unit, as in '4GiB'"):
        ContextParams(moe_cache_size=4)
    # Copies are checked again, by the number alone.
    with pytest.raises(ValueError, match="moe_cache_size is '1KiB'; it takes 0, or 65536 bytes and more"):
        ContextParams().with_moe_cache_size("1KiB")
    for bad in (-1, "much", 2**63, 1.5, None):
        with pytest.raises((ValueError, TypeError), match="moe_cache_size"):
            ContextParams().with_moe_cache_size(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_slots", [6, 7, 24, 1000])
def test_text_is_the_same_with_a_cache(cached: Model, n_slots: int) -> None:
    found = []
    for size in (0, of_slots(n_slots)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            context = cached.new_context(SMALL.with_moe_cache_size(size))
        with context:
            found.append([piece.token for piece in context.generate([1, 5, 9], max_tokens=24)])
            context.decode(Batch.get_one(np.arange(40) + 3))  # more tokens than the cache takes part in
            found[-1].append(int(context.get_logits_ith(-1).argmax()))
    assert found[0] == found[1]


def test_what_is_too_small(cached: Model) -> None:
    # Two experts a token, of three layers that share the cache.
    with pytest.raises(
        ContextCreationError, match=r"experts of one token in one layer: it takes at least .* and .* of use"
    ):
        cached.new_context(SMALL.with_moe_cache_size(of_slots(2) - 1))
    for slots in (2, 5):
        with pytest.warns(UserWarning, match="one token in all layers .* hardly hit") as caught:
            cached.new_context(SMALL.with_moe_cache_size(of_slots(slots))).close()
        assert caught[0].filename == __file__


def test_llama_cpp_takes_no_less(cached: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # Our least is its own: what is refused here, it refuses too, and not a byte more.
    monkeypatch.setattr("moebind.context.creation.check_moe_cache", lambda *_: None)
    cached.new_context(SMALL.with_moe_cache_size(of_slots(2))).close()
    with pytest.raises(ContextCreationError, match="too small to hold the experts of one token"):
        cached.new_context(SMALL.with_moe_cache_size(of_slots(2) - 1))


def refused(path: Path, params: ModelParams) -> str:
    with Model.load_from_file(path, params) as model:
        with pytest.raises(ContextCreationError) as caught:
            model.new_context(SMALL.with_moe_cache_size("1GiB"))
        model.new_context(SMALL).close()
    return str(caught.value)


def test_without_a_gpu(path: Path) -> None:
    assert "no layer with experts is computed by a GPU: raise n_gpu_layers" in refused(path, CPU)


def test_layers_on_the_cpu(path: Path, device: Device) -> None:
    assert "raise n_gpu_layers" in refused(path, on(device).with_n_gpu_layers(0))


def test_experts_on_the_device(path: Path, device: Device) -> None:
    message = refused(path, ModelParams(n_gpu_layers=-1, devices=(device,)))
    assert "keep some in host memory" in message
    assert "RPC" in message


def test_models_without_experts(tiny_path: MakeTiny, device: Device) -> None:
    params = ModelParams(n_gpu_layers=-1, devices=(device,))
    assert "has no experts: leave it at 0" in refused(tiny_path(), params)


def test_tensors_that_are_split(cached: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # Over RPC llama.cpp splits none, so only the answer of the library is another one.
    class Splits:
        def __getattr__(self, name: str) -> object:
            return (lambda _: True) if name == "moebind_model_splits_tensors" else getattr(lib, name)

    monkeypatch.setattr("moebind.context.moe_cache.lib", Splits())
    with pytest.raises(ContextCreationError, match=r"split_mode TENSOR, .* take SplitMode\.LAYER"):
        cached.new_context(SMALL.with_moe_cache_size("1MiB"))


def test_experts_that_are_repacked(demo_path: Path, device: Device) -> None:
    # Some of the demo's types are repacked where the processor has the instructions for it.
    with Model.load_from_file(demo_path, on(device).with_use_extra_bufts(True)) as model:
        count = lib.moebind_model_tensors(model._open(), ffi.NULL, 0)
        tensors = ffi.new("struct moebind_tensor[]", count)
        lib.moebind_model_tensors(model._open(), tensors, count)
        if not any(b"REPACK" in ffi.string(lib.ggml_backend_buft_name(each.buft)) for each in tensors):
            pytest.skip("nothing is repacked on this processor")
        with pytest.raises(ContextCreationError, match="use_extra_bufts=False"):
            model.new_context(SMALL.with_moe_cache_size("1GiB"))
