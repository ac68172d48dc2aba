"""Steps without a thread: what each batch has of whom, and what becomes of those that leave in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from engines import EXACT, PROMPTS, alone, endless

from conftest import CPU
from moebind import AbortedError, ClosedError, Context, Model, Sampler, lib
from moebind.context.schedule import Run
from moebind.context.stepping import Steps
from moebind.sampling.settings import Settings

LONG = [1, *(3 + (i * 11) % 280 for i in range(200))]


@pytest.fixture
def context(dense: Model) -> Iterator[Context]:
    with dense.new_context(EXACT) as context:
        yield context


def text(
    context: Context, index: int, tokens: list[int], max_tokens: int = 8, sampler: Sampler | None = None, rank: int = 0
) -> Run:
    request = context._request(tokens, Settings(), sampler=sampler, max_tokens=max_tokens, copies=True)
    run = Run.of(index, request, context)
    run.rank = rank
    return run


def computed(context: Context, run: Run) -> int:
    """How many of its tokens the cache has."""
    return context.kv_cache_seq_pos_max(run.seq) + 1


def finish(steps: Steps) -> dict[int, tuple[int, ...]]:
    """The tokens that come after each prompt."""
    written: dict[int, list[int]] = {}
    while True:
        steps.fill()
        if not steps.schedule.running:
            return {index: tuple(tokens) for index, tokens in written.items()}
        for made in steps.advance():
            assert made.error is None
            written.setdefault(made.run.index, []).extend(piece.token for piece in made.pieces)


def test_texts(dense: Model, context: Context) -> None:
    steps = Steps(context, iter([text(context, at, prompt) for at, prompt in enumerate(PROMPTS)]))
    written = finish(steps)
    assert [written[at] for at in range(len(PROMPTS))] == alone(dense, PROMPTS)
    steps.close()
    assert [context.kv_cache_seq_pos_max(seq) for seq in range(3)] == [-1] * 3


def test_prompts_get_equal_parts(dense: Model, context: Context) -> None:
    prompts = [[1, *range(20 + n, 20 + 2 * n)] for n in (5, 50, 90)]
    runs = [text(context, at, prompt) for at, prompt in enumerate(prompts)]
    steps = Steps(context, iter(runs), n_prompt=30)
    steps._n_prompt_alone = 30
    steps.fill()
    steps.advance()
    # Six are the whole of the first; the others share what is left of 30, and then it is 30 for both.
    assert [computed(context, run) for run in runs] == [6, 12, 12]
    steps.advance()
    assert [computed(context, run) for run in runs] == [7, 27, 27]
    assert finish(steps)[2] == alone(dense, prompts[2:])[0]


@pytest.mark.parametrize("n_prompt", [1, 2, 16])
def test_nobody_starves(dense: Model, context: Context, n_prompt: int) -> None:
    """However many short prompts come, each batch has its part of the long one."""
    steps = Steps(context, iter(()), keeps=True, n_prompt=n_prompt)
    long = text(context, 0, LONG, max_tokens=1)
    steps.schedule.add(long)
    n_steps = n_short = 0
    while not long.seq < 0 or not n_steps:
        while len(steps.schedule.waiting) < 3:
            n_short += 1
            steps.schedule.add(text(context, n_short, [1, 5 + n_short % 200, 9, 11 + n_short % 7], max_tokens=2))
        steps.fill()
        before = long.n_past
        steps.advance()
        n_steps += 1
        if long.seq >= 0:
            assert long.n_past - before >= max(1, n_prompt // 3)
    assert n_steps <= len(LONG)
    assert n_short > n_steps


def test_a_long_prompt_among_replies(dense: Model, context: Context) -> None:
    """Each batch has a token of every reply, and no more than so many of the prompt."""
    replies = [text(context, at, [1, 5 + at], max_tokens=100, sampler=endless(dense)) for at in range(2)]
    steps = Steps(context, iter(()), n_prompt=16)
    for each in replies:
        steps.schedule.add(each)
    steps.fill()
    steps.advance()
    long = text(context, 9, LONG, max_tokens=1)
    steps.schedule.add(long)
    for n in range(1, 13):
        steps.fill()
        assert sorted(progress.run.index for progress in steps.advance()) == [0, 1]
        assert long.n_past == 16 * n
    assert 9 in {progress.run.index for progress in steps.advance()}


def test_who_is_paused_is_not_computed(dense: Model, context: Context) -> None:
    runs = [text(context, at, prompt) for at, prompt in enumerate(PROMPTS[:2])]
    steps = Steps(context, iter(runs))
    steps.fill()
    steps.advance()
    runs[0].paused = True
    held = len(runs[0].tokens)
    for _ in range(4):
        assert [progress.run for progress in steps.advance()] == runs[1:]
    assert len(runs[0].tokens) == held
    # One that waits gets its sequence; the paused one is added again by whoever resumes it.
    more = [text(context, 5 + at, prompt) for at, prompt in enumerate(PROMPTS[2:4])]
    for each in more:
        steps.schedule.add(each)
    steps.fill()
    assert runs[0].seq < 0
    assert {run.index for run in steps.schedule.running} == {1, 5, 6}
    runs[0].paused = False
    steps.schedule.add(runs[0])
    finish(steps)
    assert tuple(runs[0].tokens[len(PROMPTS[0]) :]) == alone(dense, PROMPTS[:1])[0]


@pytest.mark.parametrize("shape", [{}, {"arch": "mamba"}, {"arch": "granite_swa", "n_expert": 4}])
@pytest.mark.parametrize("leave", ["cancel", "drop"])
@pytest.mark.parametrize("n_steps", [0, 1, 3])
def test_whoever_waits_for_a_prefix_goes_on_without_its_source(
    tiny_path: Callable[..., Path], shape: dict[str, object], leave: str, n_steps: int
) -> None:
    prompts = [[*LONG, 5], [*LONG, 7, 8], [*LONG[:150], 9]]
    with Model.load_from_file(tiny_path(**shape), CPU) as model, model.new_context(EXACT) as context:
        runs = [text(context, at, prompt) for at, prompt in enumerate(prompts)]
        steps = Steps(context, iter(runs), keeps=True, n_prompt=40)
        steps._n_prompt_alone = 40
        steps.fill()
        for _ in range(n_steps):
            assert steps.advance() == []
        assert [run.source for run in runs[1:]] == [runs[0], runs[0]]
        getattr(steps, leave)(runs[0])
        assert runs[1].source is None  # it goes on with what was computed, and the other one waits for it
        assert runs[2].source is runs[1]
        assert runs[1].n_past == (40 * n_steps if leave == "cancel" else 0)
        written = finish(steps)
        assert [written[1], written[2]] == alone(model, prompts[1:])
        assert runs[2].record.n_cached == 150


@pytest.mark.parametrize("shape", [{}, {"arch": "mamba"}, {"arch": "granite_swa", "n_expert": 4}])
def test_an_aborted_batch_is_done_again(tiny_path: Callable[..., Path], shape: dict[str, object]) -> None:
    n_asked = 0

    def stop() -> bool:
        nonlocal n_asked
        n_asked += 1
        return n_asked % 2 == 1 and n_asked < 30

    params = EXACT.with_swa_full(False).with_abort_callback(stop).with_n_ubatch(32)
    prompts = [LONG, LONG[:90], [1, 5, *LONG]]
    with Model.load_from_file(tiny_path(**shape), CPU) as model, model.new_context(params) as context:
        steps = Steps(context, iter([text(context, at, prompt) for at, prompt in enumerate(prompts)]))
        written: dict[int, list[int]] = {}
        n_aborted = 0
        while True:
            steps.fill()
            # What drafts knows of those that begin anew.
            assert not any(run.fresh for run in steps.schedule.running)
            if not steps.schedule.running:
                break
            try:
                made = steps.advance()
            except AbortedError:
                n_aborted += 1
                steps.rewind()
                for run in steps.schedule.running:
                    assert computed(context, run) == run.n_past
                continue
            for each in made:
                written.setdefault(each.run.index, []).extend(piece.token for piece in each.pieces)
        assert n_aborted
        assert [tuple(written[at]) for at in range(3)] == alone(model, prompts)


def test_errors_belong_to_their_texts(dense: Model, context: Context) -> None:
    def fail(_candidates: object) -> None:
        raise ZeroDivisionError

    bad = Sampler.chain([Sampler.from_callable(fail), Sampler.greedy()])
    runs = [text(context, 0, [1, 7], sampler=bad), text(context, 1, PROMPTS[1])]
    steps = Steps(context, iter(runs))
    steps.fill()
    first, second = steps.advance()
    assert (first.run, first.pieces, type(first.error), first.ended) == (runs[0], [], ZeroDivisionError, True)
    assert (second.run, len(second.pieces), second.error, second.ended) == (runs[1], 1, None, False)
    assert runs[0].seq < 0
    assert isinstance(first.taken_error(), ZeroDivisionError)
    assert first.taken_error() is None
    finish(steps)


def test_ranks(context: Context) -> None:
    runs = [text(context, at, [1, 5 + at], max_tokens=1, rank=-at) for at in range(6)]
    steps = Steps(context, iter(()))
    for run in runs:
        steps.schedule.add(run)
    steps.fill()
    assert [run.index for run in steps.schedule.running] == [5, 4, 3]
    steps.cancel(runs[2])
    steps.cancel(runs[2])
    assert sorted(finish(steps)) == [0, 1, 3, 4, 5]


def test_another_call_that_takes_over(context: Context) -> None:
    steps = Steps(context, iter([text(context, 0, [1, 7])]))
    steps.fill()
    context.generate([1, 8], max_tokens=1).complete()
    for call in (steps.fill, steps.advance):
        with pytest.raises(ClosedError, match="took over"):
            call()
    steps.close()
    assert context.kv_cache_seq_pos_max(0) >= 0  # what is not its own is left alone


def test_a_prompt_without_causal_attention_is_not_cut(dense: Model, context: Context) -> None:
    context.set_causal_attn(False)
    run = text(context, 0, LONG, max_tokens=1)
    steps = Steps(context, iter([run]), keeps=True, n_prompt=16)
    steps.fill()
    assert [progress.run for progress in steps.advance()] == [run]
    assert np.isin(0, list(steps.schedule.free))
    assert not lib.llama_get_causal_attn(context.native)
