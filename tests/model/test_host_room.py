"""Models that are read into memory, on machines and in control groups that have too little of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CPU
from moebind import Device, LoadMode, Model, ModelLoadError
from moebind.backend.host_memory import HostMemory
from moebind.model import host_room

MakeTiny = Callable[..., Path]
READ = [LoadMode.NONE, LoadMode.MLOCK, LoadMode.DIRECT_IO]
MAPPED = [LoadMode.AUTO, LoadMode.MMAP]


@pytest.fixture
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=4)


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that this process may have so many bytes."""

    def limit(nbytes: int, swap: int = 0) -> None:
        memory = HostMemory(nbytes, nbytes, "the control group /here", swap)
        monkeypatch.setattr(host_room, "host_memory", lambda: memory)

    return limit


def weights(path: Path) -> int:
    """The bytes of all tensors."""
    from moebind import Gguf

    return sum(tensor.nbytes for tensor in Gguf.from_file(path).tensors.values())


@pytest.mark.parametrize("mode", READ)
def test_one_byte_less_is_refused(path: Path, has: Callable[..., None], mode: LoadMode) -> None:
    params = CPU.with_load_mode(mode)
    has(weights(path))
    Model.load_from_file(path, params).close()
    has(weights(path) - 1)
    expected = (
        rf"could not be loaded: its weights take .* of memory, and the control group /here lets .* is {mode.name},"
    )
    with pytest.raises(ModelLoadError, match=expected):
        Model.load_from_file(path, params)
    with pytest.raises(ModelLoadError, match=expected):
        Model.load_from_splits([path], params.with_cpu_moe_all())


def test_swap_counts(path: Path, has: Callable[..., None]) -> None:
    params = CPU.with_load_mode(LoadMode.NONE)
    has(4096, weights(path) - 4096)
    Model.load_from_file(path, params).close()
    has(4096, weights(path) - 4097)
    with pytest.raises(ModelLoadError, match=r"lets this process have .*, and .* of swap; load_mode is NONE"):
        Model.load_from_file(path, params)


@pytest.mark.parametrize("mode", MAPPED)
def test_a_mapped_file_takes_no_memory(path: Path, has: Callable[..., None], mode: LoadMode) -> None:
    has(1)
    Model.load_from_file(path, CPU.with_load_mode(mode)).close()


def test_without_weights_nothing_is_read(path: Path, has: Callable[..., None]) -> None:
    has(1)
    Model.load_from_file(path, CPU.with_load_mode(LoadMode.NONE).with_vocab_only(True)).close()


def test_what_a_device_may_take_is_not_counted(path: Path, has: Callable[..., None], device: Device) -> None:
    has(1)
    params = CPU.with_load_mode(LoadMode.NONE)
    Model.load_from_file(path, params.with_devices([device]).with_n_gpu_layers(-1)).close()
    Model.load_from_file(path, params.with_tensor_override("_exps", device.name)).close()


def test_layers_that_predict_further_tokens_are_not_counted(tiny_path: MakeTiny, has: Callable[..., None]) -> None:
    path = tiny_path(arch="glm4moe", n_expert=4, n_layer=3, n_mtp=1)
    has(weights(path) - 1)
    Model.load_from_file(path, CPU.with_load_mode(LoadMode.NONE)).close()
