"""Saved states as bytes: whole contexts and single sequences."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import bounds
import numpy as np
import pytest
from states import SEVERAL, TOKENS, fill, lengths, what_follows

from conftest import CPU, EXACT, SMALL
from moebind import Batch, ClosedError, Context, Device, Model, ModelParams, SeqState, StateError
from moebind.state import transfer

MakeTiny = Callable[..., Path]


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


# --- states that do not fit ---


def test_a_state_that_finds_no_room_leaves_what_was_there(moe: Model) -> None:
    large = SMALL.with_n_ctx(512)
    with moe.new_context(large) as context, moe.new_context(SMALL) as small:
        fill(context, [7] * 300)
        state = context.state_get()
        with pytest.raises(
            StateError,
            match=r"does not fit this context, which holds what it held; one that is made as the state's was \(n_ctx",
        ):
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
