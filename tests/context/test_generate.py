"""Generating text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import bounds
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CPU, EXACT, SMALL
from moebind import AbortedError, Batch, ClosedError, Context, Model, Sampler, SamplerError, ffi, lib
from moebind.context.prepare import common_prefix

MakeTiny = Callable[..., Path]
PROMPT = "The capital of France is"


@pytest.fixture
def demo_context(demo: Model):  # type: ignore[no-untyped-def]
    with demo.new_context(SMALL.with_n_threads(2).with_n_threads_batch(2)) as context:
        yield context


def text_of(context: Context, *arguments: object, **options: object) -> str:
    return "".join(piece.text for piece in context.generate(*arguments, **options))  # type: ignore[arg-type]


def test_greedy_is_argmax_step_by_step(demo_context: Context, demo: Model) -> None:
    pieces = list(demo_context.generate(PROMPT, max_tokens=12))
    tokens = demo.str_to_token(PROMPT).tolist()
    demo_context.kv_cache_clear()
    demo_context.decode(Batch.get_one(tokens))
    for index, piece in enumerate(pieces):
        assert piece.index == index
        assert piece.token == int(demo_context.get_logits_ith(-1).argmax())
        demo_context.decode(Batch.get_one([piece.token]))
    assert pieces[-1].stop_reason == "length"
    assert all(piece.stop_reason is None for piece in pieces[:-1])
    assert "".join(piece.text for piece in pieces) == demo.tokens_to_str([piece.token for piece in pieces])
    assert "".join(piece.text for piece in pieces).startswith(" Paris")


@given(st.lists(st.floats(width=32) | st.sampled_from([0.0, 1.0, np.nan, -np.inf]), min_size=1, max_size=150))
def test_the_likeliest_is_the_first_of_the_highest(logits: list[float]) -> None:
    known = [-np.inf if np.isnan(logit) else logit for logit in logits]
    assert lib.moebind_likeliest(ffi.new("float[]", logits), len(logits)) == known.index(max(known))


@given(st.integers(1, 5000), st.lists(st.tuples(st.integers(0, 4999), st.floats(width=32)), max_size=8))
def test_the_likeliest_of_many(n: int, changes: list[tuple[int, float]]) -> None:
    logits = np.full(n, -1, np.float32)
    for at, logit in changes:
        logits[at % n] = logit
    expected = int(np.where(np.isnan(logits), -np.inf, logits).argmax())
    assert lib.moebind_likeliest(ffi.from_buffer("float *", logits), n) == expected


def test_a_greedy_sampler_is_the_default(demo_context: Context) -> None:
    expected = text_of(demo_context, PROMPT, max_tokens=8)
    with Sampler.greedy() as greedy, Sampler.chain([Sampler.top_k(1), Sampler.dist(1)]) as chain:
        assert text_of(demo_context, PROMPT, max_tokens=8, sampler=greedy) == expected
        assert text_of(demo_context, PROMPT, max_tokens=8, sampler=chain) == expected


def test_seeds_repeat(demo_context: Context) -> None:
    texts = []
    for seed in (1, 1, 2):
        with Sampler.chain([Sampler.temp(1.5), Sampler.dist(seed)]) as sampler:
            texts.append(text_of(demo_context, PROMPT, max_tokens=16, sampler=sampler))
    assert texts[0] == texts[1] != texts[2]


def test_prompts_can_be_tokens(demo_context: Context, demo: Model) -> None:
    assert text_of(demo_context, demo.str_to_token(PROMPT), max_tokens=4) == text_of(demo_context, PROMPT, max_tokens=4)


@pytest.mark.parametrize("stop", [".", [".", "zzz"], ["aris"], [" Par", "is."], ["s.\n"]])
def test_stop_strings(demo_context: Context, stop: str | list[str]) -> None:
    whole = text_of(demo_context, PROMPT, max_tokens=24)
    pieces = list(demo_context.generate(PROMPT, max_tokens=24, stop=stop))
    text = "".join(piece.text for piece in pieces)
    stops = [stop] if isinstance(stop, str) else stop
    assert text == whole[: min(whole.find(each) for each in stops if each in whole)]
    assert pieces[-1].stop_reason == "stop"


def test_a_stop_string_that_never_comes(demo_context: Context) -> None:
    expected = text_of(demo_context, PROMPT, max_tokens=10)
    assert text_of(demo_context, PROMPT, max_tokens=10, stop=["Paris? No", expected[-3:] + "\0"]) == expected


def test_the_end_of_the_model(demo_context: Context) -> None:
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    pieces = list(demo_context.generate(prompt, max_tokens=100))
    assert pieces[-1].stop_reason == "eog"
    assert pieces[-1].text == ""
    assert "im_end" not in "".join(piece.text for piece in pieces)


def test_the_end_of_the_context(moe: Model) -> None:
    with moe.new_context(SMALL) as context:
        with Sampler.chain([Sampler.top_k(0), Sampler.dist(3)]) as sampler:
            tokens = np.full(context.n_ctx - 3, 270)
            for _ in range(20):
                pieces = list(context.generate(tokens, sampler=sampler))
                if pieces[-1].stop_reason != "eog":
                    break
        assert [piece.stop_reason for piece in pieces] == [None, None, None, "context"]


def test_characters_are_whole(moe: Model) -> None:
    with moe.new_context(SMALL) as context, Sampler.dist(1) as sampler:
        for piece in context.generate([1, 5], max_tokens=60, sampler=sampler):
            piece.text.encode()  # a lone surrogate would raise


def test_a_character_that_is_cut_off_is_left_out(demo_context: Context, demo: Model) -> None:
    tokens = demo.str_to_token("a\U0001f999b", add_special=False).tolist()
    pieces = [demo.token_to_bytes(token) for token in tokens]
    n = next(n for n in range(len(pieces)) if b"".join(pieces[:n])[-1:] >= b"\x80")
    for ends, text in ((n, "a"), (len(tokens), "a\U0001f999b")):
        script = iter(tokens)
        sampler = Sampler.from_callable(lambda candidates, script=script: candidates.select(next(script)))
        written = list(demo_context.generate("Once", sampler=sampler, max_tokens=ends))
        assert "".join(piece.text for piece in written) == text
        assert written[-1].stop_reason == "length"


@pytest.mark.parametrize("n", [0, 1, 2])
def test_max_tokens(demo_context: Context, n: int) -> None:
    assert len(list(demo_context.generate(PROMPT, max_tokens=n))) == n


@pytest.mark.parametrize("prompt", [[42], [42, 43], [42, 43, 44]])
@pytest.mark.parametrize("measured", [True, False])
def test_prompts_of_any_length_are_counted_alike(demo: Model, prompt: list[int], measured: bool) -> None:
    n, written = len(prompt), 4
    script = iter([43, 44, 45, 46] * 3)
    sampler = Sampler.from_callable(lambda candidates: candidates.select(next(script)))
    with demo.new_context(SMALL.with_no_perf(not measured)) as context:
        # The first token of a text comes from its prompt; the second time, only the last token of that is computed.
        for n_computed in (n, 1, 1):
            text = context.generate(prompt, sampler=sampler, max_tokens=written).complete()
            assert text.usage.prompt_tokens - text.usage.cached_tokens == n_computed
            timings = context.timings()
            assert (timings.n_p_eval, timings.n_eval) == (n_computed, written - 1)
            assert (timings.t_p_eval_ms > 0) is (timings.t_eval_ms > 0) is measured
            context.reset_timings()


def test_prefixes_are_not_decoded_again(demo_context: Context, demo: Model) -> None:
    long = PROMPT + " Paris. The capital of Italy is Rome. The capital of Spain is"
    first = text_of(demo_context, long, max_tokens=6)
    demo_context.reset_timings()
    assert text_of(demo_context, long, max_tokens=6) == first
    assert demo_context.timings().n_p_eval <= 1  # only the last token, for its logits
    demo_context.reset_timings()
    text_of(demo_context, long + first, max_tokens=2)
    assert demo_context.timings().n_p_eval <= 3
    demo_context.reset_timings()
    text_of(demo_context, long, max_tokens=2, reuse_prefix=False)
    assert demo_context.timings().n_p_eval == demo.str_to_token(long).size


def test_reuse_gives_the_same_text(demo_context: Context) -> None:
    prompts = [PROMPT, PROMPT + " Paris and", "The capital of Italy is", PROMPT]
    fresh = [text_of(demo_context, prompt, max_tokens=6, reuse_prefix=False) for prompt in prompts]
    assert [text_of(demo_context, prompt, max_tokens=6) for prompt in prompts] == fresh


def test_a_changed_cache_is_not_reused(demo_context: Context) -> None:
    expected = text_of(demo_context, PROMPT, max_tokens=5)
    changes = (
        lambda: demo_context.kv_cache_seq_rm(0, 2),
        lambda: demo_context.kv_cache_seq_add(0, 1, None, 3),
        lambda: demo_context.kv_cache_clear(),
        lambda: (demo_context.kv_cache_clear(), demo_context.decode(Batch.get_one([9] * 20))),
    )
    for change in changes:
        change()
        assert text_of(demo_context, PROMPT, max_tokens=5) == expected


def test_leaving_early(demo_context: Context) -> None:
    expected = text_of(demo_context, PROMPT, max_tokens=6)
    for piece in demo_context.generate(PROMPT, max_tokens=6):
        if piece.index == 2:
            break
    assert text_of(demo_context, PROMPT, max_tokens=6) == expected


def test_sequences_do_not_disturb_each_other(demo: Model) -> None:
    with demo.new_context(SMALL.with_n_ctx(512).with_n_seq_max(2)) as context:
        expected = [text_of(context, prompt, max_tokens=5) for prompt in (PROMPT, "Once upon a time")]
        streams = [
            context.generate(prompt, max_tokens=5, seq_id=seq_id)
            for seq_id, prompt in enumerate((PROMPT, "Once upon a time"))
        ]
        texts = ["", ""]
        for pieces in zip(*streams, strict=True):
            for seq_id, piece in enumerate(pieces):
                texts[seq_id] += piece.text
        assert texts[1] == expected[1]


def test_abort_while_generating(demo_context: Context) -> None:
    with pytest.raises(AbortedError):
        for piece in demo_context.generate(PROMPT, max_tokens=50):
            if piece.index == 3:
                threading.Thread(target=demo_context.abort).start()
    demo_context.abort()
    assert text_of(demo_context, PROMPT, max_tokens=1) == " Paris"


def test_closing_while_generating(demo: Model) -> None:
    context = demo.new_context(SMALL)
    pieces = context.generate(PROMPT, max_tokens=50)
    next(pieces)
    context.close()
    with pytest.raises(ClosedError):
        next(pieces)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt": []}, ValueError, "no tokens"),
        ({"prompt": [-1]}, ValueError, r"prompt\[0\] is -1"),
        ({"prompt": [10**6]}, ValueError, "prompt"),
        ({"prompt": 3.5}, TypeError, "takes text, token ids"),
        (
            {"prompt": ["a"]},
            TypeError,
            r"one text: several are for context\.generate_many\(.* \[engine\.generate\(p\) for p",
        ),
        ({"prompt": "\ud800"}, ValueError, "surrogate"),
        ({"prompt": "a " * 3000}, ValueError, "larger n_ctx"),
        ({"max_tokens": -2}, ValueError, "max_tokens"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens"),
        ({"stop": ""}, ValueError, "empty"),
        ({"stop": [3.5]}, TypeError, "stop"),
        ({"seq_id": 1}, ValueError, "seq_id"),
        ({"sampler": 3}, TypeError, "Sampler"),
        ({"sampler": "greedy"}, TypeError, r"sampler is 'greedy'; it takes a Sampler, such as Sampler\.greedy\(\)$"),
        ({"reuse_prefix": 1}, TypeError, "reuse_prefix"),
    ],
)
def test_bad_arguments(demo_context: Context, options: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"prompt": PROMPT, **options}
    with pytest.raises(error, match=message):
        demo_context.generate(**arguments)  # type: ignore[arg-type]


def test_a_prompt_for_which_sequences_would_share(dense: Model) -> None:
    hint = r", or with kv_unified=True, so that its 2 sequences share it$"
    with dense.new_context(SMALL.with_n_ctx(1024).with_n_seq_max(2).with_kv_unified(False)) as context:
        with pytest.raises(ValueError, match="a sequence of this context takes 512: .*a larger n_ctx" + hint):
            context.generate([1] * 600)
        with pytest.raises(ValueError, match="a larger n_ctx$"):
            context.generate([1] * 2000)
    with dense.new_context(SMALL.with_n_ctx(1024).with_n_seq_max(2).with_kv_unified(True)) as context:
        with pytest.raises(ValueError, match="a larger n_ctx$"):
            context.generate([1] * 2000)


def test_samplers_must_choose(demo_context: Context) -> None:
    with Sampler.top_k(4) as filtering, pytest.raises(SamplerError, match="does not choose"):
        demo_context.generate(PROMPT, sampler=filtering)


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    n = common_prefix(np.array(a, np.int32), np.array(b, np.int32))
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


# --- sliding windows ---


@pytest.fixture(scope="module")
def windows(tiny_path: MakeTiny) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(arch="granite_swa", n_expert=4), CPU) as model:
        assert model.n_swa == 64
        yield model


@pytest.mark.parametrize("full", [True, False])
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_prefixes_and_sliding_windows(windows: Model, full: bool, data: st.DataObject) -> None:
    """Whatever was computed before in the sequence, a prompt gives what it gives in a context of its own."""
    params = EXACT.with_n_ctx(1024).with_n_ubatch(32).with_swa_full(full)
    text = [3 + (7 * at) % 200 for at in range(600)]
    with windows.new_context(params) as context:
        for _ in range(3):
            # A part of the same text, and then something else: it goes on, goes back, or leaves within the window.
            same = data.draw(st.integers(0, 560) | st.integers(440, 520))
            tokens = [*text[:same], *data.draw(st.lists(st.integers(3, 250), min_size=1, max_size=40))]
            list(context.generate(tokens, max_tokens=data.draw(st.integers(1, 3))))
            list(context.generate(tokens, max_tokens=1))
            found = context.get_logits_ith(-1).copy()
            with windows.new_context(params) as fresh:
                list(fresh.generate(tokens, max_tokens=1))
                np.testing.assert_allclose(found, fresh.get_logits_ith(-1), atol=bounds.ORDER)


def test_a_prompt_that_goes_on_is_continued_behind_a_window(windows: Model) -> None:
    tokens = [3 + (7 * at) % 200 for at in range(500)]
    params = EXACT.with_n_ctx(1024).with_n_ubatch(32).with_swa_full(False).with_no_perf(False)
    with windows.new_context(params) as context:
        written = [piece.token for piece in context.generate(tokens, max_tokens=3)]
        assert context.kv_cache_seq_pos_min(0) > 0
        context.reset_timings()
        list(context.generate([*tokens, *written, 9, 10], max_tokens=1))
        assert context.timings().n_p_eval <= 3  # the last that was written was never computed
        context.reset_timings()
        list(context.generate([*tokens[:100], 5], max_tokens=1))
        assert context.timings().n_p_eval == 101  # what was before the window is gone


def test_a_view_of_logits_outlives_a_larger_buffer_in_the_middle(moe: Model) -> None:
    with moe.new_context(EXACT) as context:
        pieces = context.generate([1, 5, 6], max_tokens=8)
        next(pieces)
        seen = context.get_logits_ith(-1)
        kept = seen.copy()
        context.set_embeddings(True)
        next(pieces)
        taken = [np.full(seen.size, 7, np.float32) for _ in range(50)]  # what was freed would be given out again
        np.testing.assert_array_equal(seen, kept)
        assert not any(np.shares_memory(seen, each) for each in taken)
