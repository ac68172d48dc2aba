"""Texts that are written with drafts and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import CPU, EXACT
from moebind import Context, Model, MoebindError, Speculative
from moebind.bench.measure import capture
from moebind.tuning.written_texts import WARM_UP, continued, endless, timed_texts

PROMPTS = ["the cat is in it", "a to of the a to of the a to of the a to of the a to of"]


@pytest.fixture(scope="module")
def model(tiny_path: Callable[..., Path]) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(n_layer=2), CPU) as loaded:
        yield loaded


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    with model.new_context(EXACT) as made:
        yield made


def test_no_text_ends_before_its_length(context: Context) -> None:
    ends = [token for token in range(context.model.n_vocab) if context.model.is_eog_token(token)]
    assert ends
    sampler = endless(context)
    for prompt in PROMPTS:
        text = context.generate(prompt, sampler=sampler, max_tokens=40).complete()
        assert (len(text.tokens), text.stop_reason) == (40, "length")
        assert not set(ends) & set(text.tokens)


@pytest.mark.parametrize(("asked", "each"), [(4, 4), (64, 32), (20, 16)])
def test_each_prompt_is_continued_by_its_part(
    context: Context, asked: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    generate = context.generate

    def counting(prompt: object, *, max_tokens: int, **more: object) -> object:
        lengths.append(max_tokens)
        assert more["reuse_prefix"] is False
        return generate(prompt, max_tokens=max_tokens, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(context, "generate", counting)
    with Speculative(context, kind="ngram-mod") as drafts:
        for speculative in (None, drafts):
            lengths.clear()
            speeds = timed_texts(context, "the cat is " * 20, 32, PROMPTS, asked, speculative)
            assert min(speeds) > 0
            # What is not timed, the prompt, then each text with its first token, which is not timed either.
            assert lengths == [WARM_UP, 1, each + 1, each + 1]


def test_texts_side_by_side(model: Model) -> None:
    with model.new_context(EXACT.with_n_seq_max(3).with_n_ctx(3 * 256)) as context:
        with Speculative(context, kind="ngram-simple") as drafts:
            for speculative in (None, drafts):
                assert min(timed_texts(context, "the cat is " * 20, 32, PROMPTS, 8, speculative)) > 0


def test_without_room_it_says_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with model.new_context(EXACT) as context:
        generate = context.generate
        monkeypatch.setattr(
            context, "generate", lambda prompt, *, max_tokens, **more: generate(prompt, max_tokens=3, **more)
        )
        with pytest.raises(MoebindError, match=r"2 tokens were written instead of 8: the context is too short"):
            timed_texts(context, "the cat is " * 20, 32, PROMPTS, 8, None)


def test_continuations_with_drafts_are_those_without(context: Context) -> None:
    captured = capture(context.model, context, PROMPTS, 24, lambda: None)
    with Speculative(context, kind="ngram-simple", n_match=2) as drafts:
        found = continued(context, PROMPTS, captured, drafts)
    assert found is not captured.greedy
    assert np.array_equal(found, captured.greedy)
