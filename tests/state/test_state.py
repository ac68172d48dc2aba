"""Saved states as bytes: whole contexts and single sequences."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import bounds
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from states import SEVERAL, TOKENS, fill, lengths, what_follows

from conftest import CPU, EXACT, SMALL
from moebind import (
    Batch,
    ClosedError,
    Context,
    ContextParams,
    Device,
    FlashAttnType,
    GgmlType,
    Model,
    ModelParams,
    SeqState,
    StateError,
    ffi,
    lib,
)
from moebind.state import transfer
from moebind.state.seal import SEAL_SIZE, Seal, StateKind

MakeTiny = Callable[..., Path]


@pytest.fixture
def saved(context: Context) -> tuple[bytes, np.ndarray]:
    fill(context)
    return context.state_get(), what_follows(context)


@pytest.fixture(scope="module")
def other(tiny_path: MakeTiny) -> Iterator[Model]:
    """Of the same shape, with the same metadata, and other weights."""
    with Model.load_from_file(tiny_path(n_expert=4, seed=2), CPU) as model:
        yield model


# --- whole contexts ---


def test_a_context_goes_on_from_where_it_was(moe: Model, saved: tuple[bytes, np.ndarray]) -> None:
    state, expected = saved
    with moe.new_context(SMALL) as context:
        context.state_set(state)
        assert lengths(context) == [len(TOKENS)]
        np.testing.assert_array_equal(what_follows(context), expected)


def test_size(context: Context) -> None:
    empty = context.state_size
    assert empty == len(context.state_get())
    fill(context)
    assert context.state_size == len(context.state_get()) > empty + 6 * 2 * 2 * 2 * 32


def test_eighty_bytes_are_ours(context: Context) -> None:
    fill(context)
    ours = context.state_get()
    theirs = bytearray(context.state_size - SEAL_SIZE)
    assert lib.llama_state_get_data(context.native, ffi.from_buffer("uint8_t[]", theirs), len(theirs)) == len(theirs)
    assert ours[:-80] == theirs
    assert SEAL_SIZE == 80


def test_all_sequences_are_in_it(moe: Model) -> None:
    with moe.new_context(SEVERAL) as context, moe.new_context(SEVERAL) as second:
        fill(context, [1, 2, 3], 0)
        fill(context, [1, 7], 2)
        second.state_set(context.state_get())
        assert lengths(second) == [3, 0, 2]
        np.testing.assert_array_equal(what_follows(second, 2, 2), what_follows(context, 2, 2))


def test_sequences_that_share_cells(moe: Model) -> None:
    with moe.new_context(SEVERAL.with_kv_unified(True)) as context:
        fill(context)
        context.kv_cache_seq_cp(0, 1)
        state = context.state_get()
        size = context.state_size
        context.kv_cache_clear()
        context.state_set(state)
        assert lengths(context) == [6, 6, 0]
        assert context.state_size == size


def test_outputs_are_not_part_of_it(context: Context, saved: tuple[bytes, np.ndarray]) -> None:
    context.state_set(saved[0])
    with pytest.raises(IndexError, match="decode a batch"):
        context.get_logits_ith(-1)


@pytest.mark.parametrize(
    "as_bytes",
    [
        bytearray,
        memoryview,
        lambda data: np.frombuffer(data, np.uint8),
        lambda data: np.frombuffer(data, np.int8),
        lambda data: np.repeat(np.frombuffer(data, np.uint8), 2)[::2],
        lambda data: memoryview(np.repeat(np.frombuffer(data, np.uint8), 3))[::3],
    ],
)
def test_bytes_of_every_kind(context: Context, saved: tuple[bytes, np.ndarray], as_bytes: Callable[..., bytes]) -> None:
    context.kv_cache_clear()
    context.state_set(as_bytes(saved[0]))
    np.testing.assert_array_equal(what_follows(context), saved[1])


@pytest.mark.parametrize("data", ["text", 7, None, [1, 2], np.zeros(4), np.zeros(4, np.uint16), object()])
def test_what_is_not_bytes(context: Context, data: object) -> None:
    for take in (context.state_set, SeqState.from_bytes):
        with pytest.raises(TypeError, match="it takes bytes"):
            take(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"x", bytes(79), bytes(200), b"\xff" * 80, np.empty((0, 4), np.uint8)])
def test_what_is_no_state(context: Context, data: bytes) -> None:
    fill(context)
    for take in (context.state_set, SeqState.from_bytes):
        with pytest.raises(StateError, match="is not a whole state"):
            take(data)
    assert lengths(context) == [len(TOKENS)]


def test_many_bytes_that_are_no_state(context: Context) -> None:
    with pytest.raises(StateError, match="is not a whole state"):
        context.state_set(np.zeros(2**31 + 5, np.uint8))  # never touched: it takes no memory


# --- foreign and damaged ones ---


def test_another_model_of_equal_shape(other: Model, saved: tuple[bytes, np.ndarray]) -> None:
    with other.new_context(SMALL) as context:
        fill(context)
        expected = what_follows(context)
        with pytest.raises(StateError, match="another model"):
            context.state_set(saved[0])
        np.testing.assert_array_equal(what_follows(context), expected)


def test_another_model_of_another_shape(dense: Model, saved: tuple[bytes, np.ndarray]) -> None:
    with dense.new_context(SMALL) as context, pytest.raises(StateError, match="another model"):
        context.state_set(saved[0])


def test_a_model_with_changed_metadata(tiny_path: MakeTiny, saved: tuple[bytes, np.ndarray]) -> None:
    changed = CPU.with_kv_override("llama.attention.layer_norm_rms_epsilon", 1e-3)
    with Model.load_from_file(tiny_path(n_expert=4), changed) as model, model.new_context(SMALL) as context:
        with pytest.raises(StateError, match="another model"):
            context.state_set(saved[0])


def test_the_same_model_in_several_files(tiny_path: MakeTiny, saved: tuple[bytes, np.ndarray]) -> None:
    with Model.load_from_file(tiny_path(n_expert=4, split=3), CPU) as model, model.new_context(SMALL) as context:
        context.state_set(saved[0])
        np.testing.assert_array_equal(what_follows(context), saved[1])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SMALL.with_type_k(GgmlType.F32), "its type_k is F16, this context's F32"),
        (SMALL.with_type_v(GgmlType.F32), "its type_v is F16, this context's F32"),
        (SMALL.with_flash_attn_type(FlashAttnType.DISABLED), "flash attention"),
        (SMALL.with_n_seq_max(2), "n_seq_max"),
        (SMALL.with_rope_freq_base(77.0), "positions"),
        (SMALL.with_rope_freq_scale(0.5), "positions"),
    ],
)
def test_another_kind_of_cache(
    moe: Model, saved: tuple[bytes, np.ndarray], params: ContextParams, message: str
) -> None:
    with moe.new_context(params) as context:
        fill(context)
        expected = what_follows(context)
        with pytest.raises(StateError, match=message):
            context.state_set(saved[0])
        np.testing.assert_array_equal(what_follows(context), expected)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_found(context: Context, saved: tuple[bytes, np.ndarray], data: st.DataObject) -> None:
    state = bytearray(saved[0])
    if data.draw(st.booleans(), label="cut"):
        state = state[: data.draw(st.integers(0, len(state) - 1))]
    else:
        # The last part is the seal, and the first one what llama.cpp reads first.
        place = data.draw(st.one_of(st.integers(0, len(state) - 1), st.integers(0, 63), st.integers(-SEAL_SIZE, -1)))
        state[place] ^= data.draw(st.integers(1, 255))
    context.state_set(saved[0])
    with pytest.raises(StateError):
        context.state_set(state)
    np.testing.assert_array_equal(what_follows(context), saved[1])


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_under_a_right_seal(context: Context, saved: tuple[bytes, np.ndarray], data: st.DataObject) -> None:
    # Somebody could write such a state. It may be taken, for what is in the cache is numbers; nothing may break.
    context.state_set(saved[0])
    body = bytearray(saved[0][:-SEAL_SIZE])
    seal = Seal.read("the state", memoryview(saved[0]), [StateKind.CONTEXT])
    for _ in range(data.draw(st.integers(1, 3))):
        # What says how much of something there is comes first.
        place = data.draw(st.one_of(st.integers(0, 60), st.integers(0, len(body) - 4)))
        value = data.draw(st.sampled_from([0, 1, 2, 3, 5, 7, 255, 256, 2**31 - 1, 2**31, 2**32 - 1]))
        body[place : place + 4] = value.to_bytes(4, "little")
    body = body[: data.draw(st.sampled_from([len(body), len(body) - 1, len(body) // 2, 60, 0]))]
    state = bytes(body) + replace(seal, size=len(body)).bytes_for([body])
    try:
        context.state_set(state)
    except StateError:
        np.testing.assert_array_equal(what_follows(context), saved[1])
    context.kv_cache_clear()
    context.state_set(saved[0])
    np.testing.assert_array_equal(what_follows(context), saved[1])


def test_a_state_that_finds_no_room_leaves_what_was_there(moe: Model) -> None:
    large = SMALL.with_n_ctx(512)
    with moe.new_context(large) as context, moe.new_context(SMALL) as small:
        fill(context, [7] * 300)
        state = context.state_get()
        with pytest.raises(StateError, match="does not fit this context, which holds what it held"):
            small.state_set(state)
        assert lengths(small) == [0]
        fill(small)
        expected = what_follows(small)
        with pytest.raises(StateError, match="not enough cells"):
            small.state_set(state)
        assert lengths(small) == [len(TOKENS)]
        np.testing.assert_array_equal(what_follows(small), expected)


def test_a_state_that_fits_one_of_two_caches(tiny_path: MakeTiny) -> None:
    # A model with a sliding window has a second, smaller cache, whose size depends on n_ubatch.
    path = tiny_path(arch="granite_swa", n_expert=4, n_layer=4)
    params = EXACT.with_n_ctx(1024).with_swa_full(False)
    with Model.load_from_file(path, CPU) as model, model.new_context(params) as context:
        for start in range(0, 600, 300):
            batch = Batch(300)
            batch.extend([7] * 300, start, 0, False)
            context.decode(batch)
        with model.new_context(params.with_n_ubatch(64)) as small, model.new_context(params) as fresh:
            with pytest.raises(StateError, match="which holds what it held"):
                small.state_set(context.state_get())
            for each in (small, fresh):
                fill(each)
            np.testing.assert_allclose(what_follows(small), what_follows(fresh), atol=bounds.ORDER)


def test_sequences_that_there_are_not_leave_what_was_there(moe: Model) -> None:
    unified = SMALL.with_kv_unified(True)
    with moe.new_context(unified.with_n_seq_max(4)) as context, moe.new_context(unified.with_n_seq_max(2)) as small:
        fill(context, [1, 2], 3)
        fill(small, seq_id=1)
        expected = what_follows(small, 1)
        with pytest.raises(StateError, match="out of range"):
            small.state_set(context.state_get())
        assert lengths(small) == [0, 6]
        np.testing.assert_array_equal(what_follows(small, 1), expected)


# --- placements ---


def test_states_go_from_one_placement_to_another(tiny_path: MakeTiny, device: Device) -> None:
    everywhere = ModelParams(devices=[device])
    placements = [everywhere, everywhere.with_cpu_moe_all(), CPU]
    states, followed = [], []
    for params in placements:
        with Model.load_from_file(tiny_path(n_expert=4), params) as model, model.new_context(EXACT) as context:
            fill(context)
            states.append((context.state_get(), bytes(context.state_seq_get(0))))
            followed.append(what_follows(context))
    for params, expected in zip(placements, followed, strict=True):
        with Model.load_from_file(tiny_path(n_expert=4), params) as model, model.new_context(EXACT) as context:
            for whole, sequence in states:
                context.state_set(whole)
                np.testing.assert_allclose(what_follows(context), expected, atol=bounds.ORDER)
                context.kv_cache_clear()
                context.state_seq_set(SeqState.from_bytes(sequence), 0)
                np.testing.assert_allclose(what_follows(context), expected, atol=bounds.ORDER)


# --- objects ---


def test_closed_contexts(moe: Model) -> None:
    context = moe.new_context(SMALL)
    state, data = context.state_seq_get(0), context.state_get()
    context.close()
    for call in (
        context.state_get,
        lambda: context.state_set(data),
        lambda: context.state_size,
        lambda: context.state_seq_get(0),
        lambda: context.state_seq_set(state, 0),
        lambda: context.state_seq_size(0),
    ):
        with pytest.raises(ClosedError):
            call()


def test_the_models_file_must_still_be_there(tiny_path: MakeTiny, tmp_path: Path) -> None:
    path = tmp_path / "gone.gguf"
    path.write_bytes(tiny_path(n_expert=4).read_bytes())
    with Model.load_from_file(path, CPU) as model, model.new_context(SMALL) as context:
        path.unlink()
        with pytest.raises(StateError, match="cannot be read any more"):
            context.state_get()
        path.write_bytes(tiny_path(n_expert=4, seed=2).read_bytes())
        with pytest.raises(StateError, match="was changed"):
            context.state_get()


def test_a_context_without_memory(moe: Model, tmp_path: Path) -> None:
    with moe.new_context(SMALL) as context:
        fill(context)
        state, sequence = context.state_get(), context.state_seq_get(0)
        context.state_save_file(tmp_path / "whole")
        context.state_seq_save_file(tmp_path / "sequence", 0)
    with Model.load_from_file(moe.path, CPU.with_no_alloc(True)) as model, model.new_context(SMALL) as context:
        for take in (
            lambda: context.state_set(state),
            lambda: context.state_seq_set(sequence, 0),
            lambda: context.state_load_file(tmp_path / "whole"),
            lambda: context.state_seq_load_file(tmp_path / "sequence", 0),
        ):
            with pytest.raises(StateError, match="no_alloc"):
                take()


@pytest.mark.parametrize("takes", ["state_set", "state_seq_set"])
def test_ctrl_c_as_soon_as_llama_cpp_is_done(
    context: Context, saved: tuple[bytes, np.ndarray], monkeypatch: pytest.MonkeyPatch, takes: str
) -> None:
    context.kv_cache_clear()
    fill(context, [3, 3, 3])
    given = saved[0] if takes == "state_set" else context.state_seq_get(0)
    arguments = (given,) if takes == "state_set" else (given, 0)
    context.kv_cache_clear()
    fill(context)
    expected = what_follows(context)
    list(context.generate(TOKENS, max_tokens=1))
    known = dict(context._history)
    name = "write" if takes == "state_set" else "write_seq"
    really_write = getattr(transfer, name)

    calls: list[object] = []

    def interrupted(*arguments: object) -> str | None:
        calls.append(arguments)
        failure: str | None = really_write(*arguments)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return failure

    monkeypatch.setattr(transfer, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(context, takes)(*arguments)
    assert context._history == known == {0: TOKENS}
    np.testing.assert_array_equal(what_follows(context), expected)


def test_several_threads(moe: Model, context: Context, saved: tuple[bytes, np.ndarray]) -> None:
    failures: list[BaseException] = []

    def work(what: int) -> None:
        try:
            for _ in range(15):
                if what == 0:
                    context.state_set(saved[0])
                elif what == 1:
                    assert context.state_get()
                elif what == 2:
                    context.state_seq_set(context.state_seq_get(0), 0)
                else:
                    context.kv_cache_seq_rm(0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i % 4,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    context.state_set(saved[0])
    np.testing.assert_array_equal(what_follows(context), saved[1])


def test_a_callback_must_not_ask_for_the_state(demo: Model) -> None:
    errors: list[str] = []

    def abort() -> bool:
        if errors:
            return False
        for call in (context.state_get, lambda: context.state_seq_get(0), lambda: context.state_size):
            with pytest.raises(RuntimeError) as caught:
                call()
            errors.append(str(caught.value))
        return False

    with demo.new_context(SMALL.with_abort_callback(abort)) as context:
        fill(context, [7] * 100)
        assert lengths(context) == [100]
    assert len(errors) == 3
    assert all("callback" in each for each in errors)
