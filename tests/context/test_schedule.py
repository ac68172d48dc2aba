"""Prompts with a common beginning: it is computed once, and the texts are those that each has alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import conftest
from conftest import CPU
from moebind import AttentionType, Completion, Context, ContextParams, Model
from moebind.context import schedule

EXACT = conftest.EXACT.with_n_ctx(1024).with_n_seq_max(3)
PREFIX = [1, *(3 + (i * 37) % 280 for i in range(40))]
PROMPTS = [[*PREFIX, *end] for end in ([7, 8], [9], [60, 61, 62], [7, 9], [250], [7, 8])]


def alone(model: Model, prompts: list[list[int]], max_tokens: int = 6) -> list[tuple[int, ...]]:
    with model.new_context(EXACT.with_n_seq_max(1).with_n_ctx(512)) as context:
        return [
            context.generate(prompt, max_tokens=max_tokens, reuse_prefix=False).complete().tokens for prompt in prompts
        ]


def together(context: Context, prompts: Any, max_tokens: int = 6) -> list[Completion]:
    return context.generate_many(prompts, max_tokens=max_tokens).complete()


def computed(completions: list[Completion]) -> int:
    """How many tokens of prompts were computed."""
    return sum(each.usage.prompt_tokens - each.usage.cached_tokens for each in completions)


SHAPES: dict[str, dict[str, Any]] = {
    "dense": {},
    "experts": {"n_expert": 4},
    "recurrent": {"arch": "mamba"},
    "hybrid": {"arch": "lfm2"},
    "sliding window": {"arch": "granite_swa", "n_expert": 4},
    "hybrid with a window": {"arch": "lfm2", "n_swa": 16},
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def model(request: pytest.FixtureRequest, tiny_path: Callable[..., Path]) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(**request.param), CPU) as model:
        yield model


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("n_batch", [512, 13])
def test_texts_are_those_that_each_has_alone(model: Model, unified: bool, n_batch: int) -> None:
    params = EXACT.with_kv_unified(unified).with_n_batch(n_batch).with_n_ubatch(n_batch)
    with model.new_context(params) as context:
        completions = together(context, PROMPTS)
        assert [each.tokens for each in completions] == alone(model, PROMPTS)
        # At the least, the prompts that begin at the same time share what they have in common.
        assert [each.usage.cached_tokens for each in completions[:3]] == [0, len(PREFIX), len(PREFIX)]


@pytest.mark.parametrize("unified", [False, True])
def test_a_prefix_is_computed_once(dense: Model, unified: bool) -> None:
    with dense.new_context(EXACT.with_kv_unified(unified)) as context:
        prompts = [[*PREFIX, 5 + n, 6] for n in range(20)]
        context.reset_timings()
        completions = together(context, iter(prompts), 3)
        assert computed(completions) == len(PREFIX) + 20 * 2
        # The first token of each text comes from its prompt.
        n_generated = sum(each.usage.generated_tokens for each in completions)
        assert context.timings().n_p_eval == computed(completions)
        assert context.timings().n_eval == n_generated - 20
        assert [each.tokens for each in completions] == alone(dense, prompts, 3)


@pytest.mark.parametrize("prompts", [[[70]], [[70]] * 3, [[70], [71, 72]], [[70], [71], [72, 73, 74]]])
def test_prompts_of_one_token_are_prompts(dense: Model, prompts: list[list[int]]) -> None:
    for n_seq_max in (1, 2):
        with dense.new_context(EXACT.with_n_seq_max(n_seq_max)) as context:
            completions = together(context, prompts, 3)
            timings = context.timings()
            assert timings.n_p_eval == computed(completions) == sum(map(len, prompts))
            assert timings.n_eval == sum(each.usage.generated_tokens - 1 for each in completions)
            assert timings.t_p_eval_ms > 0 < timings.t_eval_ms


def test_copies_of_a_prompt_compute_their_last_token(dense: Model) -> None:
    with dense.new_context(EXACT) as context:
        completions = together(context, [PREFIX] * 7)
        assert [each.usage.cached_tokens for each in completions] == [0] + [len(PREFIX) - 1] * 6
        assert {each.tokens for each in completions} == {*alone(dense, [PREFIX])}


def test_prefixes_within_prefixes(dense: Model) -> None:
    more = [*PREFIX, *range(100, 130)]
    prompts = [[*PREFIX, 9], [*more, 5], [*more, 6], [*PREFIX, 8], PREFIX[:20], more]
    for unified in (False, True):
        params = EXACT.with_n_seq_max(6).with_n_ctx(6 * 256).with_kv_unified(unified)
        with dense.new_context(params) as context:
            completions = together(context, prompts)
            assert [each.tokens for each in completions] == alone(dense, prompts)
            assert computed(completions) == len(PREFIX) + 1 + 30 + 1 + 1 + 1 + 1 + 1


def test_a_source_that_ends_at_once(dense: Model) -> None:
    """Its text is over with its first token, while others wait for its prefix."""
    prompts = [{"prompt": PREFIX, "max_tokens": 1}, [*PREFIX, 9], {"prompt": [*PREFIX, 9], "max_tokens": 1}]
    with dense.new_context(EXACT) as context:
        one, two, three = together(context, prompts)
    [[first], *_] = [alone(dense, [PREFIX], 1)]
    assert one.tokens == first
    assert [two.tokens] == alone(dense, [[*PREFIX, 9]])
    assert three.tokens == two.tokens[:1]


def test_a_full_cache(dense: Model) -> None:
    """Who gives up its place shares again when it goes on."""
    prompts = [[*PREFIX, *(3 + (i * k) % 280 for i in range(70))] for k in (1, 3, 7, 11)]
    for n_ctx in (256, 280):
        with dense.new_context(EXACT.with_n_ctx(n_ctx).with_kv_unified(True)) as context:
            completions = together(context, prompts, 30)
        with dense.new_context(EXACT.with_n_seq_max(1).with_n_ctx(n_ctx)) as context:
            expected = [context.generate(each, max_tokens=30, reuse_prefix=False).complete() for each in prompts]
        assert [each.tokens for each in completions] == [each.tokens for each in expected]


def test_without_causal_attention_nothing_is_shared(dense: Model) -> None:
    with dense.new_context(EXACT.with_attention_type(AttentionType.NON_CAUSAL)) as context:
        assert computed(together(context, PROMPTS, 1)) == sum(map(len, PROMPTS))


def test_short_beginnings_are_not_waited_for(dense: Model) -> None:
    with dense.new_context(EXACT) as context:
        completions = together(context, [[1, 5, 6], [1, 5, 7], [1, 5, 8]])
        assert computed(completions) == 9
        prompts = [[1, 5, 6], [1, 5, 7], [1, 5, 8], [1, 5, 6]]
        assert [each.tokens for each in together(context, prompts)] == alone(dense, prompts)


def test_long_sequences_are_not_copied_for_little(dense: Model) -> None:
    n = len(PREFIX)
    params: ContextParams = EXACT.with_n_seq_max(2)
    enough = schedule.CACHE_PER_SHARED * n
    with dense.new_context(params.with_n_ctx(2 * enough)) as context:
        assert computed(together(context, PROMPTS[:2], 1)) == n + 3
    with dense.new_context(params.with_n_ctx(4 * enough)) as context:
        assert computed(together(context, PROMPTS[:2], 1)) == 2 * n + 3


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(
        st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=5).flatmap(
            lambda parts: st.lists(st.integers(3, 290), min_size=1, max_size=3).map(lambda end: (parts, end))
        ),
        min_size=1,
        max_size=7,
    ),
    n_batch=st.integers(4, 60),
    n_seq_max=st.integers(1, 4),
    unified=st.booleans(),
    which=st.sampled_from([{}, {"arch": "mamba"}, {"arch": "lfm2"}]),
)
def test_any_prompts(
    tiny_path: Callable[..., Path],
    prompts: list[tuple[list[int], list[int]]],
    n_batch: int,
    n_seq_max: int,
    unified: bool,
    which: dict[str, Any],
) -> None:
    blocks = [[3 + (i * k) % 280 for i in range(17)] for k in (5, 7, 11)]
    tokens = [[1, *(token for part in parts for token in blocks[part]), *end] for parts, end in prompts]
    params = EXACT.with_n_batch(n_batch).with_n_ubatch(n_batch).with_n_seq_max(n_seq_max).with_kv_unified(unified)
    with Model.load_from_file(tiny_path(**which), CPU) as model:
        with model.new_context(params) as context:
            got = together(context, tokens, 4)
        assert [each.tokens for each in got] == alone(model, tokens, 4)


@pytest.mark.parametrize("unified", [False, True])
def test_a_prefix_behind_a_window_is_shared(tiny_path: Callable[..., Path], unified: bool) -> None:
    """What a window has dropped is seen by nobody who goes on behind it; who goes back further computes it again."""
    text = [3 + (7 * at) % 200 for at in range(500)]
    prompts = [
        {"prompt": [*text, 9], "max_tokens": 12},
        {"prompt": [5], "max_tokens": 2},  # gives its place to the next, which goes on from the first
        {"prompt": [*text, 9, 11], "max_tokens": 4},
        {"prompt": [*text[:300], 12], "max_tokens": 4},
    ]
    params = EXACT.with_n_ctx(2048).with_n_ubatch(32).with_swa_full(False).with_kv_unified(unified)
    with Model.load_from_file(tiny_path(arch="granite_swa", n_expert=4), CPU) as model:
        with model.new_context(params.with_n_seq_max(1)) as context:
            expected = [
                context.generate(each["prompt"], max_tokens=each["max_tokens"], reuse_prefix=False).complete().tokens  # type: ignore[arg-type]
                for each in prompts
            ]
        with model.new_context(params.with_n_seq_max(2)) as context:
            found = together(context, prompts)
    assert [each.tokens for each in found] == expected
    assert [each.usage.cached_tokens for each in found] == [0, 0, 501, 0]


class Counted(int):
    """A rank that counts how often one is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) == other

    __hash__ = int.__hash__

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) < int(other)


@pytest.mark.parametrize("backwards", [False, True])
def test_cancelling_many_is_quick(backwards: bool) -> None:
    n = 1000
    made = schedule.Schedule(iter(()), 1, True, 512)
    nothing: Any = None
    runs = [schedule.Run(at, nothing, nothing, None, nothing, [1], Counted(at)) for at in range(n)]
    for run in runs:
        made.add(run)
    Counted.compared = 0
    for run in reversed(runs) if backwards else runs:
        made.cancel(nothing, run)
    assert not made.waiting
    # To take one from a heap compares at each level, down and up again; tuples in tuples compare a number three times.
    assert Counted.compared <= 2 * 3 * n * n.bit_length()
