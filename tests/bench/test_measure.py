"""What is measured of one placement."""

from __future__ import annotations

import numpy as np
import pytest
from bounds import ORDER
from hypothesis import given
from hypothesis import strategies as st

from conftest import EXACT, SMALL
from moebind import Batch, Model, MoebindError
from moebind.bench.measure import TimedRun, capture, check_room, prompt_text, spread, timed_batch, timed_run


@given(st.integers(1, 10_000), st.integers(0, 500))
def test_positions_are_spread(count: int, most: int) -> None:
    chosen = spread(count, most)
    assert 1 <= chosen.size <= max(1, most)
    assert chosen[0] == 0
    assert chosen[-1] < count
    assert (np.diff(chosen) > 0).all()
    if most >= count:
        assert chosen.size == count


def test_figures_of_a_run() -> None:
    run = TimedRun(8, 2, 0.5, 0.6, (0.6, 0.8, 1.1))
    assert (run.prompt_speed, run.decode_speed) == (16.0, pytest.approx(4.0))
    assert run.intervals == (pytest.approx(0.2), pytest.approx(0.3))


@pytest.mark.parametrize("n_tokens", [1, 2, 10, 300, 3000])
def test_texts_of_any_length(moe: Model, n_tokens: int) -> None:
    text = prompt_text(moe, "the cat is in it. ", n_tokens)
    assert moe.str_to_token(text).size >= n_tokens
    assert len(text) <= 20 + 1.5 * n_tokens * len("the cat is in it. ")


def test_a_run_is_a_prompt_and_greedy_tokens(moe: Model) -> None:
    text = prompt_text(moe, "the cat is in it. ", 40)
    with moe.new_context(SMALL.with_n_batch(16).with_n_ubatch(16)) as context:  # several batches
        for _ in range(2):
            run = timed_run(moe, context, text, 40, 3)
            assert (run.n_prompt, run.n_generate, len(run.stamps)) == (40, 3, 4)
            assert 0 < run.prompt < run.first_token == run.stamps[0]
            assert all(interval > 0 for interval in run.intervals)
            assert context.kv_cache_seq_pos_max(0) == 40 + 3 - 1


def test_what_is_captured_is_what_the_model_computes(moe: Model) -> None:
    prompts = ["the cat", "it is in it"]
    steps: list[None] = []
    with moe.new_context(SMALL.with_n_batch(4).with_n_ubatch(4)) as context:
        found = capture(moe, context, prompts, 5, lambda: steps.append(None))
    assert len(steps) == 2
    assert found.greedy.shape == (2, 5)
    at = 0
    for prompt, continued in zip(prompts, found.greedy.tolist(), strict=True):
        tokens = moe.str_to_token(prompt)
        with moe.new_context(SMALL) as context:
            batch = Batch(tokens.size)
            batch.add_sequence(tokens, 0, logits_all=True)
            context.decode(batch)
            logits = context.get_logits().copy()
            greedy = [int(logits[-1].argmax())]
            while len(greedy) < 5:
                context.decode(Batch.get_one(greedy[-1:]))
                greedy.append(int(context.get_logits_ith(-1).argmax()))
        rows = found.logits[at : at + tokens.size].astype(np.float32)
        np.testing.assert_allclose(rows, logits - logits.max(axis=1, keepdims=True), atol=0.02)
        assert found.top[at : at + tokens.size].tolist() == logits.argmax(axis=1).tolist()
        assert continued == greedy
        at += tokens.size
    assert at == len(found.logits) == len(found.top)


def test_models_and_contexts_that_are_not_measured(moe: Model, bert: Model, t5: Model) -> None:
    with moe.new_context(SMALL) as context:
        check_room(moe, context, 256)
        with pytest.raises(MoebindError, match="are 257 tokens, and a sequence has room for 256"):
            check_room(moe, context, 257)
    for model in (bert, t5):
        with model.new_context(SMALL) as context, pytest.raises(MoebindError, match="does not continue texts"):
            check_room(model, context, 1)


def test_a_prompt_that_is_nothing(demo: Model) -> None:
    assert not demo.add_bos
    with demo.new_context(SMALL) as context, pytest.raises(MoebindError, match=r"makes nothing of the prompt ''"):
        capture(demo, context, ["a", ""], 2, lambda: None)


def test_sequences_of_a_batch_are_computed_as_alone(moe: Model) -> None:
    text = prompt_text(moe, "the cat is in it. a dog was on the mat ", 30)
    tokens = moe.str_to_token(text)
    with moe.new_context(EXACT.with_n_seq_max(3).with_n_ctx(768)) as context:
        run = timed_batch(moe, context, text, 10, 4, 3)
        assert (run.n_sequences, run.n_prompt, run.n_generate, len(run.stamps)) == (3, 10, 4, 5)
        assert all(interval > 0 for interval in run.intervals)
        for sequence in range(3):
            assert context.kv_cache_seq_pos_max(sequence) == 10 + 4 - 1
        together = context.get_logits().copy()
    for sequence in range(3):
        with moe.new_context(EXACT) as context:
            written = tokens[10 * sequence : 10 * sequence + 10].tolist()
            context.decode(Batch.get_one(written))
            for _ in range(4):
                written.append(int(context.get_logits_ith(-1).argmax()))
                context.decode(Batch.get_one(written[-1:]))
            np.testing.assert_allclose(together[sequence], context.get_logits_ith(-1), atol=ORDER)
