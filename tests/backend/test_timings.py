"""How long a context has computed."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace

import pytest
from states import decode_all

from moebind import Batch, Context, ContextParams, Model, SamplerTimings, Speculative, Timings, ffi
from moebind.backend import timings as timings_room
from moebind.backend.timings import WrittenCounts, read_timings


def test_timings(context: Context) -> None:
    decode_all(context, [1, 2, 3])
    context.decode(Batch.get_one([4]))
    context.get_logits_ith(-1)
    timings = context.timings()
    assert (timings.n_p_eval, timings.n_eval) == (3, 1)
    assert timings.t_p_eval_ms > 0
    assert timings.tokens_per_second > 0
    assert "decode 1 tokens" in str(timings)
    context.reset_timings()
    assert context.timings().t_p_eval_ms == 0


def test_speeds() -> None:
    timings = Timings(1.0, 2.0, 500.0, 250.0, 100, 10, 3)
    assert timings.prompt_tokens_per_second == 200.0
    assert timings.tokens_per_second == 40.0
    assert str(timings) == "prompt 100 tokens in 500 ms (200.0/s); decode 10 tokens in 250 ms (40.0/s)"
    nothing = Timings(0.0, 0.0, 0.0, 0.0, 1, 1)
    assert (nothing.prompt_tokens_per_second, nothing.tokens_per_second) == (0.0, 0.0)
    assert str(SamplerTimings(1.25, 7)) == "7 tokens sampled in 1.2 ms"


def test_timings_are_those_of_the_struct() -> None:
    numbers = {
        "t_start_ms": 1.5,
        "t_load_ms": 2.5,
        "t_p_eval_ms": 3.5,
        "t_eval_ms": 4.5,
        "n_p_eval": 5,
        "n_eval": 6,
        "n_reused": 7,
    }
    data = ffi.new("struct llama_perf_context_data *", numbers)
    assert asdict(read_timings(data[0])) == {
        **numbers,
        "moe_cache": None,
        "n_drafted": 0,
        "n_accepted": 0,
        "t_draft_ms": 0.0,
        "draft_stopped": None,
    }
    # What batches were for texts that go on is theirs; that there was a single token is only said.
    data.t_eval_ms, data.n_eval = 0.0, 1
    timings = read_timings(data[0], written=WrittenCounts(4, 3, 2.5))
    assert (timings.n_p_eval, timings.t_p_eval_ms) == (1, 1.0)
    assert (timings.n_eval, timings.t_eval_ms) == (3, 2.5)


@pytest.mark.parametrize(("n_tokens", "missing"), [(7, 9.5), (1, 0.0)])
def test_what_llama_cpp_does_not_count_is_measured(
    n_tokens: int, missing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten milliseconds, of which it counts a half; a single token is counted elsewhere."""
    said = ffi.new("struct llama_perf_context_data *", {"n_p_eval": 1})
    clock = iter([1.0, 1.010])
    library = SimpleNamespace(llama_perf_context=lambda _: said[0], llama_synchronize=lambda _: None)
    monkeypatch.setattr(timings_room, "lib", library)
    monkeypatch.setattr(timings_room.time, "perf_counter", lambda: next(clock))
    written = WrittenCounts()
    with written.making_room(ffi.NULL):
        said.n_p_eval, said.t_p_eval_ms = n_tokens, 0.5
    assert written.t_uncounted_ms == pytest.approx(missing)
    assert read_timings(said[0], written=written).t_p_eval_ms == pytest.approx(0.5 + missing)


def test_drafts_that_make_room_take_time(dense: Model) -> None:
    """The first that are looked at are more outputs than the context had before."""
    with dense.new_context(ContextParams(n_ctx=512, n_threads=1, n_threads_batch=1)) as context:
        with Speculative(context, kind="ngram-simple", n_match=1, n_max=8) as drafts:
            pieces = context.generate([*range(3, 103)] * 2, speculative=drafts, max_tokens=40)
            for _ in pieces:
                before = context.timings()
                next(pieces, None)
                after = context.timings()
                if after.n_drafted > 0:
                    break
            assert context._written.t_uncounted_ms > 0
    assert after.n_drafted > before.n_drafted == 0
    assert after.t_eval_ms > before.t_eval_ms
    assert after.t_p_eval_ms == pytest.approx(before.t_p_eval_ms)


@pytest.mark.parametrize(("counted", "at_once"), [(1, 2), (5, 7)])
def test_time_of_a_batch_is_shared_out_by_its_tokens(
    counted: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two tokens one is a prompt's, also where they are the first that are computed together."""
    said = ffi.new("struct llama_perf_context_data *", {"n_p_eval": counted, "t_p_eval_ms": 1.0})
    monkeypatch.setattr(timings_room, "lib", SimpleNamespace(llama_perf_context=lambda _: said[0]))
    written = WrittenCounts()
    before = written.counted(ffi.NULL)
    said.n_p_eval, said.t_p_eval_ms = at_once, 9.0
    written.add(ffi.NULL, before, 1, 1)
    assert (written.n_computed, written.t_ms) == (1, 4.0)
    written.add(ffi.NULL, written.counted(ffi.NULL), 1, 1)  # nothing was computed since
    assert written.n_computed == 1


def test_single_tokens_of_prompts_are_those_of_prompts() -> None:
    # Two of the six; of prompts, llama.cpp says one where it counted none.
    data = ffi.new("struct llama_perf_context_data *", {"t_eval_ms": 4.5, "n_p_eval": 1, "n_eval": 6})
    written = WrittenCounts(n_of_prompts=2, t_of_prompts_ms=1.5)
    timings = read_timings(data[0], written=written)
    assert (timings.n_p_eval, timings.t_p_eval_ms) == (2, 1.5)
    assert (timings.n_eval, timings.t_eval_ms) == (4, 3.0)
    data.n_p_eval, data.t_p_eval_ms = 5, 2.0
    timings = read_timings(data[0], written=written)
    assert (timings.n_p_eval, timings.t_p_eval_ms) == (7, 3.5)
    # A context that measures no times counts all the same; what is counted is never less than one.
    data.t_eval_ms, data.n_eval = 0.0, 2
    timings = read_timings(data[0], written=WrittenCounts(n_of_prompts=2))
    assert (timings.n_p_eval, timings.n_eval) == (7, 1)
    timings = read_timings(data[0], written=WrittenCounts(4, 3, n_of_prompts=1))
    assert (timings.n_p_eval, timings.n_eval) == (2, 4)
