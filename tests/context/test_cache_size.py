"""Caches that no memory could hold are refused, by what llama.cpp would allocate; whatever fits is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import moebind
from conftest import CPU, SMALL
from moebind import ContextCreationError, ContextParams, Device, GgmlType, Model, ModelParams
from moebind.backend import breakdown
from moebind.backend.host_memory import HostMemory
from moebind.context import creation

MakeTiny = Callable[..., Path]
MIB = 2**20
LONG = ContextParams(n_ctx=2**15, n_ubatch=32, n_threads=1, n_threads_batch=1, swa_full=False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets how much memory the machine has; then every context is counted."""

    def set_to(size: int, swap: int = 0) -> None:
        for module in (breakdown, creation):
            monkeypatch.setattr(module, "host_memory", lambda: HostMemory(size, size, swap=swap))
        monkeypatch.setattr(creation, "COUNTED_MIN", 0)

    return set_to


@pytest.fixture(scope="module")
def compressed(architecture_path: Callable[[str], Path]) -> Path:
    """A model with compressed attention, of which a token has one key for all heads, and no values."""
    return architecture_path("deepseek2")


def assert_limit(path: Path, context: ContextParams, machine: Callable[..., None], params: ModelParams = CPU) -> int:
    """That memory for just its cache is enough, and a byte less is not; how large the cache is."""
    size = moebind.plan(path, params, context).host.context
    with Model.load_from_file(path, params) as model:
        machine(size)
        with model.new_context(context) as live:
            assert live.memory_breakdown().host.context == size
        machine(size - 1)
        with pytest.raises(ContextCreationError, match=rf"n_ctx is {context.n_ctx}: of Host, which has .* its cache"):
            model.new_context(context)
        machine(4096, size - 4096)  # which is swapped out, however slow that is
        model.new_context(context).close()
        machine(4096, size - 4097)
        with pytest.raises(ContextCreationError, match=r"of Host, which has .* and .* of swap, its cache"):
            model.new_context(context)
    return size


def test_windows_are_no_longer_than_they_are(tiny_path: MakeTiny, machine: Callable[..., None]) -> None:
    path = tiny_path(arch="granite_swa", n_expert=4, n_layer=12, n_head=2, n_head_kv=2, n_ctx_train=2**16)
    windows = assert_limit(path, LONG, machine)
    whole = assert_limit(path, LONG.with_swa_full(True), machine)
    assert windows < 0.6 * whole  # half of the layers have one


def test_compressed_keys(compressed: Path, machine: Callable[..., None]) -> None:
    # Two layers, 48 numbers of 2 bytes.
    assert assert_limit(compressed, LONG, machine) == pytest.approx(2 * 48 * 2 * LONG.n_ctx, rel=0.01)


def test_types_of_keys_and_values(tiny_path: MakeTiny, machine: Callable[..., None]) -> None:
    path = tiny_path(n_head=2, n_head_kv=1)
    plain = assert_limit(path, LONG, machine)
    small = LONG.with_type_k(GgmlType.Q8_0).with_type_v(GgmlType.Q4_0)
    assert assert_limit(path, small, machine) < 0.5 * plain


@pytest.mark.parametrize("arch", ["mamba", "lfm2"])
def test_states_of_many_sequences(tiny_path: MakeTiny, machine: Callable[..., None], arch: str) -> None:
    path = tiny_path(arch=arch, n_layer=4)
    context = LONG.with_n_seq_max(128)
    assert assert_limit(path, context, machine) > moebind.plan(path, CPU, LONG).host.context


def test_what_is_on_a_device_does_not_count_for_the_host(
    tiny_path: MakeTiny, machine: Callable[..., None], device: Device
) -> None:
    path = tiny_path()
    machine(MIB)
    for change in (ModelParams(devices=(device,)), CPU):
        with Model.load_from_file(path, change) as model:
            if change is CPU:
                with pytest.raises(ContextCreationError, match="of Host"):
                    model.new_context(LONG)
            else:
                model.new_context(LONG).close()


def test_a_device_that_is_too_small_is_told(tiny_path: MakeTiny) -> None:
    with moebind.loopback_device(memory=32 * MIB) as small:
        with Model.load_from_file(tiny_path(), ModelParams(devices=(small,))) as model:
            with pytest.raises(ContextCreationError, match=r"of RPC.*, which has 32\.0 MiB, its cache"):
                model.new_context(ContextParams(n_ctx=2**23, n_threads=1, n_threads_batch=1))


def test_two_equal_devices_are_two(tiny_path: MakeTiny) -> None:
    path = tiny_path(n_layer=8)
    params = ContextParams(n_ctx=2**16, n_threads=1, n_threads_batch=1)
    with moebind.loopback_device(memory=48 * MIB) as one, moebind.loopback_device(memory=48 * MIB) as other:
        both = ModelParams(devices=(one, other), tensor_split=(1, 1))
        with Model.load_from_file(path, both) as model, model.new_context(params) as live:
            held = live.memory_breakdown()
    assert sum(each.context for each in held.devices) > 48 * MIB


def test_counting_takes_no_memory(tiny_path: MakeTiny, machine: Callable[..., None]) -> None:
    process = psutil.Process()
    machine(2**34)  # this one may have more
    with Model.load_from_file(tiny_path(n_layer=8), CPU) as model:
        model.new_context(SMALL).close()
        before = process.memory_info().rss
        with pytest.raises(ContextCreationError, match="n_ctx is 134217728: of Host"):
            model.new_context(ContextParams(n_ctx=2**27, n_threads=1, n_threads_batch=1))
        assert process.memory_info().rss - before < 256 * MIB


def test_long_contexts_grow_evenly(
    tiny_path: MakeTiny, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_path(arch="granite_swa", n_expert=4, n_layer=4)
    for context in (LONG, LONG.with_n_seq_max(4), LONG.with_swa_full(True)):
        exact = moebind.plan(path, CPU, context).host.context
        monkeypatch.setattr(creation, "EXTRAPOLATED_MIN", 2**13)
        machine(exact - 1)
        with Model.load_from_file(path, CPU) as model:
            with pytest.raises(ContextCreationError, match="its cache would take"):
                model.new_context(context)
            machine(exact)
            model.new_context(context).close()
