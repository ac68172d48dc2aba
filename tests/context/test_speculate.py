"""The text with drafts is the one without, whatever ends it, chooses it, or comes in between."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import HELLO
from drafts import EAGER, FROM_STATES, Costs, Drafting, Watched, check_same, drafting, drafting_from_states, prompts

from conftest import EXACT
from moebind import AbortedError, Batch, ClosedError, Context, ContextType, Model, Sampler
from moebind.context.drafting import DraftModel

LONG = EXACT.with_n_ctx(512)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture(params=["same", "other", "near", "n-grams", "mtp", "eagle3", "gemma4-assistant"])
def at_work(
    request: pytest.FixtureRequest,
    moe: Model,
    drafters: dict[str, Model],
    mtp: Model,
    architecture_path: Callable[..., Path],
) -> Iterator[Drafting]:
    if request.param == "n-grams":
        made = drafting(moe, None, LONG, kind="ngram-map-k", **EAGER)
    elif request.param == "mtp":
        made = drafting(mtp, mtp, LONG, LONG.with_ctx_type(ContextType.MTP), n_max=4)
    elif request.param in FROM_STATES:
        made = drafting_from_states(architecture_path, request.param, LONG, n_max=4)
    else:
        made = drafting(moe, drafters[request.param], LONG, n_max=4)
    with made as opened:
        yield opened


def test_stops_and_limits(at_work: Drafting) -> None:
    text = at_work.reference.generate("the a of", max_tokens=40).complete()
    for at in range(2, 30, 3):
        at_work.check(["the a of"], max_tokens=40, stop=[text.pieces[at].token])
    for begin in range(3, min(len(text.text), 24), 4):
        at_work.check(["the a of"], max_tokens=40, stop=text.text[begin : begin + 3])
    for limit in [0, 1, 2, 3, 5, 6, 7]:
        completion = at_work.target.generate("the a of", max_tokens=limit, speculative=at_work.made).complete()
        assert completion.usage.generated_tokens == limit
        assert completion.tokens == text.tokens[:limit]


def check_drafted(at_work: Drafting, more_than: int = 0) -> int:
    """Raise unless so many tokens were drafted; n-grams were only looked for. Returns how many there were."""
    timings = at_work.target.timings()
    assert timings.t_draft_ms > 0
    assert timings.n_drafted > more_than or at_work.made.draft_context is None
    return timings.n_drafted


def both(at_work: Drafting, prompt: str, make: Sampler, **options: object) -> list[tuple[int, ...]]:
    """The tokens with drafts, and those without, by clones of a sampler."""
    texts = []
    for context, speculative in ((at_work.target, at_work.made), (at_work.reference, None)):
        with make.clone() as sampler:
            pieces = context.generate(prompt, sampler=sampler, speculative=speculative, **options)  # type: ignore[arg-type]
            texts.append(pieces.complete().tokens)
    return texts


@pytest.mark.parametrize("max_tokens", [4, 40])
def test_a_grammar_and_a_schema(at_work: Drafting, max_tokens: int) -> None:
    for grammar in ['root ::= ("ab" | "cd")+', "root ::= [a-z ]{5,20}"]:
        chain = Sampler.chain([Sampler.grammar(at_work.target.model, grammar, "root"), Sampler.greedy()])
        drafted, plain = both(at_work, "the", chain, max_tokens=max_tokens)
        assert drafted == plain
    at_work.check(["the", "a of"], max_tokens=max_tokens, json_schema=SCHEMA, temperature=0)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8, "seed": 5},
        {"repeat_penalty": 1.3, "temperature": 0.0},
        {"top_k": 3, "seed": 2, "presence_penalty": 0.5},
    ],
)
def test_samplers_see_what_was_accepted(at_work: Drafting, options: dict[str, float]) -> None:
    # Penalties and random numbers depend on every token that was accepted, and on none that was not.
    for prompt in prompts(6):
        plain = at_work.reference.generate(prompt, max_tokens=24, **options).complete()  # type: ignore[arg-type]
        pieces = at_work.target.generate(prompt, max_tokens=24, speculative=at_work.made, **options)  # type: ignore[arg-type]
        assert pieces.complete().tokens == plain.tokens


def test_a_sampler_goes_on_after_a_text(at_work: Drafting) -> None:
    texts = []
    for context, speculative in ((at_work.target, at_work.made), (at_work.reference, None)):
        with Sampler.chain([Sampler.top_k(4), Sampler.dist(9)]) as chain:
            made = [
                context.generate(prompt, sampler=chain, max_tokens=9, speculative=speculative) for prompt in prompts(5)
            ]
            texts.append([pieces.complete().tokens for pieces in made])
    assert texts[0] == texts[1]


def test_biases_and_seeds(at_work: Drafting) -> None:
    likeliest = at_work.reference.generate("the a of", max_tokens=9).complete().tokens
    bias = Sampler.logit_bias(dict.fromkeys(likeliest, -100.0))
    drafted, plain = both(at_work, "the a of", Sampler.chain([bias, Sampler.greedy()]), max_tokens=30)
    assert drafted == plain
    assert not set(drafted) & set(likeliest)


def test_logprobs(at_work: Drafting) -> None:
    drafted = at_work.target.generate("the a of", max_tokens=20, logprobs=3, speculative=at_work.made).complete()
    plain = at_work.reference.generate("the a of", max_tokens=20, logprobs=3).complete()
    check_same(at_work.reference, "the a of", drafted, plain, max_tokens=20)
    assert drafted.logprobs is not None
    assert plain.logprobs is not None
    np.testing.assert_allclose(drafted.logprobs, plain.logprobs, atol=1e-4)
    for one, other in zip(drafted.pieces, plain.pieces, strict=True):
        assert [each.token for each in one.top] == [each.token for each in other.top]


def test_chats(at_work: Drafting) -> None:
    options: dict[str, Any] = {"max_tokens": 24, "template": "chatml"}
    reply = at_work.target.chat(HELLO, speculative=at_work.made, **options)
    message = reply.complete()
    assert message == at_work.reference.chat(HELLO, **options).complete()
    assert reply.usage.generated_tokens == 24
    check_drafted(at_work)
    # The next turn goes on from what the cache holds.
    longer = [*HELLO, message, {"role": "user", "content": "and it"}]
    answer = at_work.target.chat(longer, speculative=at_work.made, **options)
    assert answer.complete() == at_work.reference.chat(longer, **options).complete()
    assert answer.usage.cached_tokens > 24


def test_asynchronously(at_work: Drafting) -> None:
    target, expected = at_work.target, at_work.reference.generate("the a of", max_tokens=24).complete()
    reply = at_work.reference.chat(HELLO, max_tokens=24, template="chatml").complete()

    async def main() -> None:
        pieces = target.agenerate("the a of", max_tokens=24, speculative=at_work.made)
        assert (await pieces.complete()).tokens == expected.tokens
        drafted = check_drafted(at_work)
        chat = target.achat(HELLO, max_tokens=24, template="chatml", speculative=at_work.made)
        assert await chat.complete() == reply
        check_drafted(at_work, drafted)
        # One that is left in the middle.
        async with target.agenerate("the a of", max_tokens=200, speculative=at_work.made) as left:
            await anext(left)
        again = target.agenerate("the a of", max_tokens=24, speculative=at_work.made)
        assert (await again.complete()).tokens == expected.tokens

    asyncio.run(main())


def test_a_full_context(at_work: Drafting) -> None:
    at_work.check([[3] * 505, [4] * 511, [5] * 512])
    assert at_work.target.generate([3] * 505, speculative=at_work.made).complete().stop_reason == "context"


def test_prefixes_are_used_again(at_work: Drafting) -> None:
    first = at_work.target.generate("the a of", max_tokens=20, speculative=at_work.made).complete()
    longer = "the a of" + first.text + " and it"
    plain = at_work.reference.generate(longer, max_tokens=12).complete()
    for speculative in (at_work.made, None, at_work.made, "ngram-simple"):
        drafted = at_work.target.generate(longer, max_tokens=12, speculative=speculative).complete()
        check_same(at_work.reference, longer, drafted, plain, max_tokens=12)
    assert drafted.usage.cached_tokens > 8


def test_closed_in_the_middle(at_work: Drafting) -> None:
    target = at_work.target
    for n in range(1, 8):
        pieces = target.generate("the a of", max_tokens=30, speculative=at_work.made)
        came = tuple(piece.token for piece in itertools.islice(pieces, n))
        pieces.close()
        assert came == at_work.reference.generate("the a of", max_tokens=n).complete().tokens
        # What the cache holds is the text, and nothing that was drafted and not looked at.
        assert target.kv_cache_seq_pos_max(0) == len(target._history[0]) - 1
        at_work.check(["the a of", "the a"], max_tokens=9)


def test_others_take_the_sequence_over(at_work: Drafting) -> None:
    for take_over in (at_work.target.kv_cache_clear, lambda: at_work.check(["it is"], max_tokens=9)):
        pieces = at_work.target.generate("the a of", max_tokens=60, speculative=at_work.made)
        next(pieces)
        take_over()
        with pytest.raises(ClosedError):
            list(pieces)


class StoppedError(Exception):
    """What a sampler raises."""


def test_a_sampler_that_fails(at_work: Drafting) -> None:
    expected = at_work.reference.generate("the a of", max_tokens=30).complete().tokens
    for n in range(6):
        count = itertools.count()

        def fail(_candidates: object, count: itertools.count[int] = count, n: int = n) -> None:
            if next(count) == n:
                raise StoppedError

        came: list[int] = []
        with Sampler.chain([Sampler.from_callable(fail), Sampler.greedy()]) as chain, pytest.raises(StoppedError):
            pieces = at_work.target.generate("the a of", sampler=chain, max_tokens=30, speculative=at_work.made)
            came.extend(piece.token for piece in pieces)
        assert tuple(came) == expected[: len(came)]
        at_work.check(["the a of"], max_tokens=9)


@pytest.fixture(params=["near", "mtp", "eagle3"])
def watched(
    request: pytest.FixtureRequest,
    moe: Model,
    drafters: dict[str, Model],
    mtp: Model,
    architecture_path: Callable[..., Path],
) -> Iterator[tuple[Drafting, Watched]]:
    watcher = Watched(LONG.with_n_seq_max(2))
    params = watcher.params
    if request.param == "mtp":
        made = drafting(mtp, mtp, LONG.with_n_seq_max(2), params.with_ctx_type(ContextType.MTP))
    elif request.param == "eagle3":
        made = drafting_from_states(architecture_path, "eagle3", LONG.with_n_seq_max(2), params)
    else:
        made = drafting(moe, drafters["near"], LONG.with_n_seq_max(2), params)
    with made as opened:
        yield opened, watcher


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("how", ["Ctrl-C", "abort"])
def test_stopped_in_the_middle_of_a_draft(watched: tuple[Drafting, Watched], how: str, *, many: bool) -> None:
    made, watcher = watched
    stop, error = {
        "Ctrl-C": (lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt),
        "abort": (made.target.abort, AbortedError),
    }[how]

    def text() -> None:
        if many:
            made.target.generate_many(prompts(3), max_tokens=8, speculative=made.made).complete()
        else:
            made.target.generate("the a of", max_tokens=8, speculative=made.made, reuse_prefix=False).complete()

    watcher.after(0, stop)
    text()
    n_tensors = watcher.seen
    assert watcher.ended > 4
    for n in np.linspace(1, n_tensors, 6).astype(int):
        watcher.after(n, stop)
        with pytest.raises(error):
            text()
        assert watcher.ended == 0, "it went on"
        made.check(["the a of", "it is"], max_tokens=9)
        watcher.after(0, stop)
        text()
        assert watcher.seen == n_tensors


def test_the_drafts_own_abort_callback(moe: Model, drafters: dict[str, Model]) -> None:
    asked, limit = itertools.count(), math.inf
    params = LONG.with_abort_callback(lambda: next(asked) >= limit)
    with drafting(moe, drafters["near"], LONG, params) as made:
        for stop_at in range(1, 12, 2):
            asked, limit = itertools.count(), stop_at
            with contextlib.suppress(AbortedError):
                made.target.generate("the a of", max_tokens=60, speculative=made.made).complete()
            limit = math.inf
            made.check(["the a of", "it is"], max_tokens=9)


def test_abort(moe: Model, drafters: dict[str, Model]) -> None:
    with drafting(moe, drafters["near"], LONG) as made:
        pieces = made.target.generate("the a of", max_tokens=60, speculative=made.made)
        next(pieces)
        made.target.abort()
        with pytest.raises(AbortedError):
            list(pieces)
        made.check(["the a of", "it is"], max_tokens=9)
        for delay in (0.01, 0.02, 0.04):
            stopper = threading.Timer(delay, made.target.abort)
            stopper.start()
            with contextlib.suppress(AbortedError):
                made.target.generate("the a of", max_tokens=450, speculative=made.made).complete()
            stopper.join()
            made.check(["the a of"], max_tokens=9)


def test_ctrl_c(at_work: Drafting) -> None:
    # Anywhere: in a draft, in the target's computation, or between them.
    for delay in (0.01, 0.03):
        alarm = threading.Timer(delay, signal.raise_signal, [signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            alarm.start()  # also while it waits for that thread to begin
            for _ in range(1000):
                at_work.target.generate("the a of", max_tokens=450, speculative=at_work.made).complete()
        alarm.join()
        at_work.check(["the a of", "it is"], max_tokens=9)


@pytest.mark.parametrize("kind", ["near", "ngram-map-k", "mtp"])
def test_auto_switches_off_what_loses(
    moe: Model, drafters: dict[str, Model], mtp: Model, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    options: dict[str, Any] = {"kind": kind, **EAGER} if kind == "ngram-map-k" else {}
    target, draft = (mtp, mtp) if kind == "mtp" else (moe, drafters.get(kind))
    draft_params = LONG.with_ctx_type(ContextType.MTP) if kind == "mtp" else None
    with drafting(target, draft, LONG, draft_params, auto=True, **options) as made:
        judge = made.made._judge
        assert judge is not None
        judge.clock = Costs(made.target, 10**9, 10**11)
        with caplog.at_level(logging.INFO, "moebind.speculative"):
            made.check(["the a of the a of the a of"], max_tokens=40)
            drafted = made.target.timings().n_drafted
            assert 0 < drafted <= 3 * made.made.n_max
            # Another text begins without, and tries again later: a draft model at the beginning of a text.
            made.check(["the a of the a of"], max_tokens=12)
            assert made.target.timings().n_drafted == drafted
            judge.clock = Costs(made.target, 10**9, 10**6)
            made.check([*prompts(6), "the a of the a of the a of"], max_tokens=100)
        timings = made.target.timings()
        made.target.reset_timings()
        assert made.target.timings().draft_stopped is None
    assert timings.n_drafted > drafted
    first, second = [record.getMessage() for record in caplog.records]
    assert first.startswith("drafting is switched off for 64 tokens: ")
    assert first.endswith("tokens/s with drafts, 0.0 without")
    assert second == "drafting is tried again"
    assert timings.draft_stopped is not None
    assert timings.draft_stopped in first
    assert f"drafting was switched off: {timings.draft_stopped}" in str(timings)


@pytest.mark.parametrize("p_min", [0.0, 1.0])
def test_the_drafts_own_prompt_is_no_loss(moe: Model, drafters: dict[str, Model], p_min: float) -> None:
    """With a draft that is always right, or never sure enough to offer anything."""
    with drafting(moe, drafters["same"], LONG, auto=True, p_min=p_min) as made:
        judge, drafter = made.made._judge, made.made._drafting
        assert judge is not None
        assert isinstance(drafter, DraftModel)
        judge.clock = clock = Costs(made.target, 10**9, 10**9)
        clock.slow_prompts(drafter, 10**12)
        made.check(["the a of to " * n for n in range(5, 11)], max_tokens=12, reuse_prefix=False)
        assert drafter.t_prompt_us >= 5 * 10**12
        timings = made.target.timings()
        assert timings.draft_stopped is None
        assert (timings.n_drafted > 0) == (p_min == 0)


def chances(context: Context, prompt: list[int], top_k: int, depth: int) -> dict[tuple[int, ...], float]:
    """The probabilities of what may come, by the model itself."""
    made: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(depth):
        longer = {}
        for tokens, chance in made.items():
            context.kv_cache_clear()
            context.decode(Batch.get_one([*prompt, *tokens]))
            logits = context.get_logits_ith(-1).astype(np.float64)
            likeliest = np.argsort(-logits)[:top_k]
            weights = np.exp(logits[likeliest] - logits[likeliest[0]])
            for token, weight in zip(likeliest, weights / weights.sum(), strict=True):
                longer[(*tokens, int(token))] = chance * float(weight)
        made = longer
    return made


@pytest.mark.parametrize(
    "n_draws", [3000, pytest.param(100_000, marks=[pytest.mark.thorough, pytest.mark.timeout(1800)])]
)
def test_sampling_keeps_its_distribution(moe: Model, drafters: dict[str, Model], n_draws: int) -> None:
    prompt, depth, top_k = [1, 270, 271], 3, 3
    with drafting(moe, drafters["near"], EXACT, n_max=2) as made:
        expected = chances(made.reference, prompt, top_k, depth)
        counts = dict.fromkeys(expected, 0)
        with Sampler.chain([Sampler.top_k(top_k), Sampler.dist(11)]) as chain:
            for _ in range(n_draws):
                pieces = made.target.generate(prompt, sampler=chain, max_tokens=depth, speculative=made.made)
                counts[pieces.complete().tokens] += 1
        timings = made.target.timings()
    assert 0 < timings.n_accepted < timings.n_drafted
    squared = sum((counts[each] - n_draws * chance) ** 2 / (n_draws * chance) for each, chance in expected.items())
    freedom = len(expected) - 1
    # Wilson and Hilferty: the cube root of chi-squared over its degrees of freedom is all but normal. Five deviations.
    spread = 2 / (9 * freedom)
    assert ((squared / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < 5


def test_timings_tell_the_prompt_from_what_was_written(moe: Model, drafters: dict[str, Model]) -> None:
    prompt = [1, 270, 271, 272]
    with drafting(moe, drafters["near"], EXACT, n_max=4) as made:
        for speculative in (made.made, None):
            made.target.reset_timings()
            completion = made.target.generate(prompt, max_tokens=16, speculative=speculative, reuse_prefix=False)
            written = len(completion.complete().tokens)
            timings = made.target.timings()
            assert timings.n_p_eval == len(prompt)
            # The first token comes from the prompt.
            assert timings.n_eval == written - 1
            assert timings.t_p_eval_ms > 0
            assert timings.t_eval_ms > 0
            assert (timings.n_drafted > 0) == (speculative is not None)
            assert f"prompt 4 tokens in {timings.t_p_eval_ms:.0f} ms" in str(timings)
