"""Many texts with drafts are those without."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from drafts import (
    EACH_FROM_STATES,
    EAGER,
    NGRAMS,
    PARTED_MAX,
    REPEATED,
    Costs,
    Drafting,
    check_same,
    drafting,
    drafting_from_states,
    prompts,
    repeating,
)
from engines import endless

from conftest import CPU, EXACT
from moebind import AbortedError, Context, ContextParams, ContextType, Model, Sampler, SpeculativeType
from moebind.context import draft_many
from moebind.context.drafting import DraftModel, Wanted

MANY = EXACT.with_n_ctx(1536).with_n_seq_max(3)


def check_many(made: Drafting, texts: list[object], **options: object) -> None:
    drafted = made.target.generate_many(texts, speculative=made.made, **options).complete()  # type: ignore[arg-type]
    plain = made.reference.generate_many(texts, **options).complete()  # type: ignore[arg-type]
    pairs = zip(texts, drafted, plain, strict=True)
    assert sum(check_same(made.reference, prompt, one, other, **options) for prompt, one, other in pairs) <= PARTED_MAX


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("name", ["same", "near"])
def test_a_draft_model(moe: Model, drafters: dict[str, Model], name: str, unified: bool) -> None:
    with drafting(moe, drafters[name], MANY.with_kv_unified(unified), n_max=4) as made:
        # The same beginning is computed once.
        check_many(made, [*prompts(12), "the a of to " * 20, "the a of to " * 20 + "it", "and"], max_tokens=24)
        assert made.target.timings().n_drafted > 50


@pytest.mark.parametrize("kind", NGRAMS)
def test_n_grams(moe: Model, kind: SpeculativeType) -> None:
    with drafting(moe, None, MANY, kind=kind, **EAGER) as made:
        check_many(made, list(prompts(12)), max_tokens=40)
    # Texts that go on as their prompts do.
    with drafting(moe, None, MANY, kind=kind, **EAGER) as made, repeating(moe) as sampler:
        texts: list[object] = [{"prompt": REPEATED * 4, "max_tokens": n} for n in (20, 60, 40, 30, 50)]
        many = made.target.generate_many(texts, sampler=sampler, speculative=made.made)  # type: ignore[arg-type]
        assert [each.text for each in many.complete()] == [REPEATED * n for n in (2, 6, 4, 3, 5)]
        timings = made.target.timings()
        assert 50 < timings.n_accepted <= timings.n_drafted
        assert timings.t_draft_ms > 0


@pytest.mark.parametrize("name", EACH_FROM_STATES)
def test_drafts_from_hidden_states(architecture_path: Callable[..., Path], name: str) -> None:
    with drafting_from_states(architecture_path, name, MANY, n_max=3) as made:
        check_many(made, list(prompts(8)), max_tokens=24)
        assert made.target.timings().n_drafted > 50


def test_multi_token_prediction(mtp: Model) -> None:
    with drafting(mtp, mtp, MANY, MANY.with_ctx_type(ContextType.MTP)) as made:
        check_many(made, list(prompts(8)), max_tokens=24)
        assert made.target.timings().n_drafted > 50


def test_a_recurrent_memory(tiny_path: Callable[..., Path], drafters: dict[str, Model]) -> None:
    with Model.load_from_file(tiny_path(arch="lfm2", n_layer=4), CPU) as model:
        with drafting(model, drafters["near"], MANY.with_n_rs_seq(3), MANY, n_max=8) as made:
            check_many(made, list(prompts(8)), max_tokens=24)
            assert made.target.timings().n_drafted > 50


@pytest.mark.parametrize("name", ["other", "n-grams"])
def test_a_sliding_window(tiny_path: Callable[..., Path], drafters: dict[str, Model], name: str) -> None:
    params = MANY.with_n_ubatch(16).with_n_batch(64).with_swa_full(False)
    options: dict[str, Any] = {"n_max": 8} if name != "n-grams" else {"kind": "ngram-map-k", **EAGER, "n_match": 1}
    with Model.load_from_file(tiny_path(arch="gemma4", n_layer=4), CPU) as model:
        with drafting(model, drafters.get(name), params, **options) as made:
            long = "the a of to and in it is " * 12
            check_many(made, [*prompts(8), long, long + "was", long[:60]], max_tokens=90)
            timings = made.target.timings()
            assert timings.n_drafted > 0
            assert timings.n_accepted < timings.n_drafted


def test_a_full_cache(moe: Model, drafters: dict[str, Model]) -> None:
    # Three texts of 200 tokens in a cache of 256: one gives up its place, and none loses its drafts' tokens.
    params = EXACT.with_n_ctx(256).with_n_seq_max(3).with_kv_unified(True)
    with drafting(moe, drafters["near"], params, n_max=6) as made:
        check_many(made, [[3, 4, 5], [6, 7, 8], [9, 10]], max_tokens=200)


@pytest.mark.parametrize("params", [MANY.with_n_batch(8).with_n_ubatch(8), MANY.with_n_outputs_max(4)])
def test_drafts_leave_room_for_prompts(dense: Model, params: ContextParams, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when each draft is as long as can be, and the end of a prompt comes first, or at the same time."""

    def draft(wanted: Sequence[Wanted]) -> None:
        for each in wanted:
            each.drafted = [7] * each.n_max

    always = Sampler.chain([Sampler.logit_bias({7: 1000.0}), Sampler.greedy()])
    with drafting(dense, None, params, kind=SpeculativeType.NGRAM_SIMPLE, n_match=1, n_max=8, n_min=1) as made:
        monkeypatch.setattr(made.made._drafting, "draft", draft)
        monkeypatch.setattr(made.made._drafting, "accept", lambda *_: None)  # it knows nothing of these
        texts = [{"prompt": [1] * n, "max_tokens": 12 + n} for n in (3, 4, 2, 40, 2, 9)]
        many = made.target.generate_many(texts, sampler=always, speculative=made.made)
        assert [each.tokens for each in many.complete()] == [(7,) * each["max_tokens"] for each in texts]  # type: ignore[operator]
        assert made.target.timings().n_drafted > 20


def test_stops_and_samplers(moe: Model, drafters: dict[str, Model]) -> None:
    with drafting(moe, drafters["near"], MANY) as made:
        check_many(made, list(prompts(4)), max_tokens=24, stop=["a", " of"])
        texts: list[object] = [{"prompt": "the a", "max_tokens": 3}, {"prompt": "it is", "logprobs": 2}, "of"]
        drafted = made.target.generate_many(texts, max_tokens=20, seed=3, temperature=0.8, speculative=made.made)  # type: ignore[arg-type]
        plain = made.reference.generate_many(texts, max_tokens=20, seed=3, temperature=0.8)  # type: ignore[arg-type]
        pairs = list(zip(drafted.complete(), plain.complete(), strict=True))
        assert [one.tokens for one, _ in pairs] == [other.tokens for _, other in pairs]
        assert pairs[1][0].logprobs == pytest.approx(pairs[1][1].logprobs, abs=1e-4)


def test_what_fails_in_between(moe: Model, drafters: dict[str, Model]) -> None:
    def fail(_candidates: object) -> None:
        raise KeyError

    with drafting(moe, drafters["near"], MANY) as made:
        with Sampler.chain([Sampler.from_callable(fail), Sampler.greedy()]) as failing, pytest.raises(KeyError):
            made.target.generate_many(["the", "a"], sampler=failing, speculative=made.made).complete()
        pieces = made.target.generate_many(["the", "a"], max_tokens=40, speculative=made.made)
        next(pieces)
        made.target.abort()
        with pytest.raises(AbortedError):
            list(pieces)
        pieces = made.target.generate_many(["the", "a"], max_tokens=40, speculative=made.made)
        next(pieces)
        pieces.close()
        check_many(made, list(prompts(4)), max_tokens=12)
        made.check(prompts(2), max_tokens=12)


def test_auto(moe: Model, drafters: dict[str, Model], caplog: pytest.LogCaptureFixture) -> None:
    with drafting(moe, drafters["near"], MANY, auto=True) as made, caplog.at_level(logging.INFO, "moebind.speculative"):
        judge = made.made._judge
        assert judge is not None
        judge.clock = Costs(made.target, 10**9, 10**11)
        check_many(made, list(prompts(3)), max_tokens=24)
        timings = made.target.timings()
        # Three steps at most, each for three texts at most.
        assert 0 < timings.n_drafted <= 3 * 3 * made.made.n_max
        # The next texts begin without: fewer than 64 tokens came since.
        check_many(made, list(prompts(2)), max_tokens=4)
        assert made.target.timings().n_drafted == timings.n_drafted
    assert "drafting is switched off for 64 tokens" in caplog.records[0].getMessage()


@pytest.mark.parametrize("drafts", [True, False])
def test_timings_tell_the_prompts_from_what_was_written(
    moe: Model, drafters: dict[str, Model], *, drafts: bool
) -> None:
    texts = [[1, 270, 271, 272], [3, 4, 5], [6, 7, 8, 9, 10], [9, 10]]
    with drafting(moe, drafters["near"], MANY, n_max=4) as made:
        made.target.reset_timings()
        pieces = made.target.generate_many(texts, max_tokens=12, speculative=made.made if drafts else None)
        completions = pieces.complete()
        timings = made.target.timings()
        assert (timings.n_drafted > 0) == drafts
    assert timings.n_p_eval == sum(each.usage.prompt_tokens - each.usage.cached_tokens for each in completions)
    assert timings.n_eval == sum(each.usage.generated_tokens - 1 for each in completions)
    assert timings.t_p_eval_ms > 0
    assert timings.t_eval_ms > 0


def test_auto_drafts_where_it_can_tell_what_that_costs(moe: Model, drafters: dict[str, Model]) -> None:
    """Not beside prompts: a text that never is without them would lose without bound."""
    with drafting(moe, drafters["near"], MANY, auto=True) as made:
        judge = made.made._judge
        assert judge is not None
        judge.clock = Costs(made.target, 10**9, 10**11)
        check_many(made, ["the a"], max_tokens=4)  # it knows what a token takes
        assert judge.wants_draft
        before = made.target.timings().n_drafted
        others = [{"prompt": [1, 5 + i, 6], "max_tokens": 1} for i in range(100)]
        made.target.generate_many([{"prompt": "the a of", "max_tokens": 40}, *others], speculative=made.made).complete()
        # Three steps at most, each for three texts at most.
        assert made.target.timings().n_drafted - before <= 3 * 3 * made.made.n_max


@pytest.mark.parametrize("p_min", [0.0, 1.0])
def test_the_drafts_own_prompts_are_no_loss(moe: Model, drafters: dict[str, Model], p_min: float) -> None:
    """With a draft that is always right, or never sure enough to offer anything."""
    with drafting(moe, drafters["same"], MANY, auto=True, p_min=p_min) as made:
        judge, drafter = made.made._judge, made.made._drafting
        assert judge is not None
        assert isinstance(drafter, DraftModel)
        judge.clock = clock = Costs(made.target, 10**9, 10**9)
        clock.slow_prompts(drafter, 10**12)
        # Each begins with another token: what the draft has of one is nothing of the next.
        check_many(made, [[3 + n, *range(20, 60)] for n in range(12)], max_tokens=12)
        timings = made.target.timings()
        assert timings.draft_stopped is None
        assert drafter.t_prompt_us > 9 * 10**12
        assert (timings.n_drafted > 0) == (p_min == 0)


@pytest.mark.parametrize("name", ["draft model", "from states"])
def test_what_has_lost_is_tried_again_with_a_text(
    moe: Model,
    drafters: dict[str, Model],
    mtp: Model,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    simple = name == "draft model"
    model, draft = (moe, drafters["near"]) if simple else (mtp, mtp)
    with drafting(model, draft, MANY, None if simple else MANY.with_ctx_type(ContextType.MTP), auto=True) as made:
        judge = made.made._judge
        assert judge is not None
        judge.clock = Costs(made.target, 10**9, 10**11)
        with caplog.at_level(logging.INFO, "moebind.speculative"):
            check_many(made, list(prompts(40)), max_tokens=12)
        messages = [record.getMessage() for record in caplog.records]
        assert "drafting is tried again" in messages
        n_switched_off = sum("switched off" in message for message in messages)
        assert n_switched_off > 1
        before = made.target.timings().n_drafted
        assert before <= 3 * 3 * made.made.n_max * n_switched_off
        judge.clock, judge._left = Costs(made.target, 10**9, 10**6), 1
        check_many(made, list(prompts(3)), max_tokens=12)
        check_many(made, list(prompts(3)), max_tokens=12)
        assert made.target.timings().n_drafted > before


def test_a_text_that_has_lost_its_drafts_goes_on_without(
    moe: Model, drafters: dict[str, Model], caplog: pytest.LogCaptureFixture
) -> None:
    """Others may be drafted for again; of this one the draft model has missed too much."""
    with drafting(moe, drafters["near"], MANY, auto=True) as made, endless(moe) as sampler:
        judge = made.made._judge
        assert judge is not None
        judge.clock = Costs(made.target, 10**9, 10**11)
        with caplog.at_level(logging.INFO, "moebind.speculative"):
            text = {"prompt": [3, 4, 5], "max_tokens": 250}
            made.target.generate_many([text], sampler=sampler, speculative=made.made).complete()
        assert made.target.timings().n_drafted > 0
    messages = [record.getMessage() for record in caplog.records]
    assert "drafting is tried again" in messages
    assert sum("switched off" in message for message in messages) == 1


@pytest.mark.parametrize("name", ["draft model", "from states"])
def test_a_memory_that_does_not_go_back_after_all(
    moe: Model,
    drafters: dict[str, Model],
    mtp: Model,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    cut = draft_many.cut_back

    def no_memory_does(context: Context, native: object, seq: int, _n: int) -> bool:
        cut(context, native, seq, 0)
        return False

    simple = name == "draft model"
    model, draft = (moe, drafters["other"]) if simple else (mtp, mtp)
    with drafting(model, draft, MANY, None if simple else MANY.with_ctx_type(ContextType.MTP)) as made:
        monkeypatch.setattr(draft_many, "cut_back", no_memory_does)
        check_many(made, list(prompts(6)), max_tokens=16)
        timings = made.target.timings()
        assert 0 < timings.n_drafted - timings.n_accepted <= 6 * 3  # three, once in each text
