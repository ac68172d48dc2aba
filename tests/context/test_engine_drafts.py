"""Drafts in an engine: each text has its own, or none, and all are what they would be without."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drafts import EACH_FROM_STATES, FROM_STATES, PARTED_MAX, Costs, check_same, prompts, repeating
from engines import check, endless, wait_until

from conftest import CPU, EXACT
from moebind import (
    AbortedError,
    ClosedError,
    Completion,
    Context,
    ContextType,
    Draft,
    Engine,
    Model,
    ModelNotFoundError,
    MtpSpeculative,
    Sampler,
    Speculative,
    SpeculativeError,
    SpeculativeType,
)
from moebind.context.schedule import Run
from moebind.context.stepping import Steps
from moebind.sampling.settings import Settings

MANY = EXACT.with_n_ctx(1536).with_n_seq_max(3)
WORDS = list(prompts(8))
#: Longer than what an n-gram compares by default.
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def reference(moe: Model) -> Iterator[Context]:
    with moe.new_context(MANY) as context:
        yield context


def check_texts(reference: Context, asked: dict[str, Any], **options: Any) -> None:
    """Raise unless what was asked for each prompt is what it would be without drafts."""
    expected: dict[str, Completion] = {}
    for prompt in asked:
        expected[prompt] = reference.generate(prompt, reuse_prefix=False, **options).complete()
    found = {prompt: pieces.complete() for prompt, pieces in asked.items()}
    assert sum(check_same(reference, each, found[each], expected[each], **options) for each in asked) <= PARTED_MAX


def n_drafted(engine: Engine) -> int:
    return engine.timings().n_drafted


# --- each request its own ---


def test_each_text_has_its_own(moe: Model, reference: Context, drafters: dict[str, Model]) -> None:
    kinds = [SpeculativeType.NGRAM_SIMPLE, "ngram-map-k", "auto", None, "ngram-mod"]
    with drafters["near"].new_context(MANY) as draft_context:
        with Engine(moe, MANY, speculative=lambda context: Speculative(context, draft_context, n_max=4)) as engine:
            # Every other one leaves it to the engine.
            options = [{"speculative": kinds[n // 2]} if n % 2 else {} for n in range(8)]
            asked = {
                prompt: engine.generate(prompt, max_tokens=24, **each)  # type: ignore[typeddict-item]
                for prompt, each in zip(WORDS, options, strict=True)
            }
            check_texts(reference, asked, max_tokens=24)
            assert n_drafted(engine) > 20
            check(engine)


@pytest.mark.parametrize("way", ["generate", "agenerate"])
def test_who_drafts_is_chosen_by_the_request(moe: Model, way: str) -> None:
    def drafted(engine: Engine, **options: Any) -> int:
        before = n_drafted(engine)
        ask = engine.generate if way == "generate" else (lambda *given, **more: _Waited(engine, *given, **more))
        assert ask(ALPHABET * 4, sampler=sampler, max_tokens=52, **options).complete().text == ALPHABET * 2
        return n_drafted(engine) - before

    with repeating(moe, ALPHABET) as sampler:
        with Engine(moe, MANY) as engine:
            assert drafted(engine) == 0
            assert drafted(engine, speculative="ngram-simple") > 0
            assert drafted(engine, speculative=None) == 0
        with Engine(moe, MANY, speculative="ngram-simple") as engine:
            assert drafted(engine) > 0
            assert drafted(engine, speculative=None) == 0
            assert drafted(engine, speculative=SpeculativeType.NGRAM_MAP_K) > 0


class _Waited:
    """A text of ``agenerate``, as one that is waited for."""

    def __init__(self, engine: Engine, *given: Any, **options: Any) -> None:
        self._make = lambda: engine.agenerate(*given, **options)

    def complete(self) -> Completion:
        async def whole() -> Completion:
            return await self._make().complete()

        return asyncio.run(whole())


def test_a_chat_is_drafted_for(moe: Model) -> None:
    messages = [{"role": "user", "content": ALPHABET * 4}]
    with Engine(moe, MANY) as engine, repeating(moe, ALPHABET) as sampler:
        options: dict[str, Any] = {"template": "chatml", "sampler": sampler, "max_tokens": 52}
        assert engine.chat(messages, **options).complete()["content"] == ALPHABET * 2
        assert n_drafted(engine) == 0
        assert engine.chat(messages, speculative="ngram-simple", **options).complete()["content"] == ALPHABET * 2
        before = n_drafted(engine)
        assert before > 0

        async def reply() -> str:
            return str((await engine.achat(messages, speculative="ngram-simple", **options).complete())["content"])

        assert asyncio.run(reply()) == ALPHABET * 2
        assert n_drafted(engine) > before
        check(engine)


def test_auto_judges_what_it_alone_has_done(moe: Model) -> None:
    """While another one drafts beside it, nobody can tell which of them pays."""
    with moe.new_context(MANY) as context, repeating(moe) as sampler:
        judged, other = context._drafting_with("auto"), context._drafting_with("ngram-map-k")
        assert judged is not None
        judge = judged._judge
        assert judge is not None
        judge.clock = Costs(context, 10**9, 10**6)
        requests = [
            context._request(text, Settings(), max_tokens=200, sampler=sampler.clone(), copies=True)
            for text in ("abcdefghij" * 8, "cdefghijab" * 8, "the")
        ]
        runs = [
            Run.of(at, *each)
            for at, each in enumerate(zip(requests, [context] * 3, (judged, None, other), strict=True))
        ]
        steps = Steps(context, iter(runs[:2]))

        def advance(n: int) -> list[bool]:
            """Whether something was drafted for the first, in each step in which all go on."""
            found = []
            for _ in range(n):
                steps.fill()
                all_go_on = all(run.begun for run in steps.schedule.running)
                steps.advance()
                found += [bool(runs[0].drafted)] if all_go_on else []
            return found

        assert any(advance(12))
        assert judge.wants_draft
        steps.schedule.add(runs[2])
        seen = judge._n_plain, judge._steps
        assert advance(6) == [False] * 5
        assert (judge._n_plain, judge._steps) == seen
        steps.cancel(runs[2])
        assert any(advance(12))
        assert (judge._n_plain, judge._steps) > seen
        steps.close()


# --- draft models ---


def test_a_file_is_loaded_and_closed_with_the_engine(
    moe: Model, reference: Context, tiny_path: Callable[..., Path]
) -> None:
    with Engine(moe, MANY, speculative=Draft(str(tiny_path(n_expert=4)), CPU)) as engine:
        usual = engine._context._usual
        assert usual is not None
        draft = usual.draft_context
        assert isinstance(draft, Context)
        assert repr(engine).endswith(f", 3 sequences, 0 running, 0 waiting, drafts: {usual!r}>")
        check_texts(reference, {each: engine.generate(each, max_tokens=24) for each in WORDS}, max_tokens=24)
        assert n_drafted(engine) > 50
        check(engine)
    assert usual.closed
    assert draft.closed
    assert draft.model.closed


def test_a_context_of_ones_own_stays(moe: Model, drafters: dict[str, Model]) -> None:
    with drafters["same"].new_context(MANY) as draft:
        engine = Engine(moe, MANY, speculative=lambda context: Speculative(context, draft))
        left = engine.generate("the a of", sampler=endless(moe))
        next(left)
        with pytest.raises(SpeculativeError, match="drafts for another Speculative already"):
            Engine(moe, MANY, speculative=lambda context: Speculative(context, draft))
        engine.close()
        with pytest.raises(ClosedError):
            list(left)
        with Engine(moe, MANY, speculative=lambda context: Speculative(context, draft)) as another:
            another.generate("the a of", max_tokens=8).complete()
            assert n_drafted(another) > 0
        assert draft.generate("the", max_tokens=4).complete().usage.generated_tokens == 4


@pytest.mark.parametrize("name", EACH_FROM_STATES)
def test_drafts_from_hidden_states(
    architecture_path: Callable[..., Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    kind = FROM_STATES[name]
    made: list[Context] = []

    def follows(context: Context) -> Speculative:
        own = MANY.with_ctx_type(ContextType.MTP) if other.n_layer_nextn else MANY
        made.append(other.new_context(own, ctx_other=context))
        return Speculative(context, made[0], n_max=3)

    with (
        Model.load_from_file(architecture_path(kind.target, 1), CPU) as model,
        Model.load_from_file(architecture_path(kind.architecture, 2, kind.numbers, kind.named), CPU) as other,
        model.new_context(MANY) as reference,
    ):
        with Engine(model, MANY, speculative=follows, prompt_chunk=8) as engine:
            left = engine.generate("the a of", sampler=endless(model))
            asked = {
                each: engine.generate(each, max_tokens=24, **({"speculative": None} if n % 3 == 2 else {}))  # type: ignore[typeddict-item]
                for n, each in enumerate(WORDS)
            }
            next(left)
            left.close()
            check_texts(reference, asked, max_tokens=24)
            before = n_drafted(engine)
            assert before > 50
            engine.generate(WORDS[0], max_tokens=24, speculative=None).complete()
            assert n_drafted(engine) == before
            with pytest.raises(SpeculativeError, match="follows all that is computed.*leave it out"):
                engine.generate("the", speculative="ngram-simple")
            with pytest.raises(SpeculativeError, match="follows all that is computed"):
                engine.agenerate("the", speculative="auto")
            check(engine)
        made[0].close()
    # It has followed all of them: nothing was out of order.
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_multi_token_prediction(mtp: Model) -> None:
    with mtp.new_context(MANY) as reference:
        for way in (MtpSpeculative, Draft()):
            with Engine(mtp, MANY, speculative=way) as engine:  # type: ignore[arg-type]
                check_texts(reference, {each: engine.generate(each, max_tokens=24) for each in WORDS}, max_tokens=24)
                assert n_drafted(engine) > 50
                check(engine)


def test_what_follows_begins_again_when_no_text_goes_on(mtp: Model, caplog: pytest.LogCaptureFixture) -> None:
    """It has lost, and knows nothing of the texts since; it can follow those that begin later."""

    def judged(context: Context) -> Speculative:
        return Speculative(context, draft, auto=True)

    with (
        mtp.new_context(MANY) as reference,
        mtp.new_context(MANY.with_ctx_type(ContextType.MTP)) as draft,
        Engine(mtp, MANY, speculative=judged) as engine,
    ):
        usual = engine._context._usual
        assert usual is not None
        judge = usual._judge
        assert judge is not None
        judge.clock = Costs(engine._context, 10**9, 10**11)
        with caplog.at_level(logging.INFO, "moebind.speculative"):
            check_texts(reference, {each: engine.generate(each, max_tokens=24) for each in WORDS[:3]}, max_tokens=24)
        assert "drafting is switched off" in caplog.text
        drafts = engine._thread._steps._drafts
        assert not drafts.follows  # it computes nothing, either
        before = n_drafted(engine)
        judge.clock, judge._left = Costs(engine._context, 10**9, 10**6), 1
        for _ in range(3):
            check_texts(reference, {each: engine.generate(each, max_tokens=12) for each in WORDS[:3]}, max_tokens=12)
        assert n_drafted(engine) > before
        assert drafts.follows


def test_what_is_aborted_or_cancelled_in_a_draft(moe: Model, reference: Context, drafters: dict[str, Model]) -> None:
    seen = threading.Event()
    params = MANY.with_abort_callback(lambda: seen.set() or False)  # type: ignore[func-returns-value]
    with drafters["near"].new_context(params) as draft:
        with Engine(moe, MANY, speculative=lambda context: Speculative(context, draft, n_max=4)) as engine:
            for end in ("close", "abort") * 4:
                seen.clear()
                left = engine.generate("the a of to " * 20, sampler=endless(moe))
                seen.wait()
                if end == "abort":
                    engine.abort()
                    with pytest.raises(AbortedError):
                        list(left)
                left.close()
                check(engine)
            check_texts(reference, {each: engine.generate(each, max_tokens=12) for each in WORDS}, max_tokens=12)


def test_a_draft_that_was_closed_ends_its_texts(moe: Model, drafters: dict[str, Model]) -> None:
    draft = drafters["near"].new_context(MANY)
    with Engine(moe, MANY, speculative=lambda context: Speculative(context, draft)) as engine:
        text = engine.generate("the", sampler=endless(moe))
        plain = engine.generate("a", sampler=endless(moe), max_tokens=200, speculative=None)
        next(text)
        draft.close()
        with pytest.raises(ClosedError):
            list(text)
        wait_until(lambda: engine.n_running <= 1)
        plain.close()
        # The engine goes on without it.
        assert engine.generate("a", max_tokens=4, speculative=None).complete().usage.generated_tokens == 4
        check(engine)


# --- what is refused ---


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (5, TypeError, r"speculative is 5; an engine takes a kind of n-grams.*lambda context: Speculative"),
        (lambda context: None, TypeError, "the function for speculative gave None; it is to make a Speculative"),
        (lambda context: 1 // 0, ZeroDivisionError, "by zero"),
        (Draft, TypeError, r"speculative is <class .*Draft'>; an engine takes .* Draft\('draft.gguf'\)"),
        ("clever", ValueError, r"takes one of auto, ngram-simple.*: a model that drafts is .*Draft\('draft.gguf'\)"),
        ("draft-simple", SpeculativeError, "which takes a model: a model that drafts is given to the engine"),
        (SpeculativeType.DRAFT_MTP, SpeculativeError, "which takes a model: .* multi-token prediction"),
        (Draft("none.gguf"), ModelNotFoundError, "none.gguf"),
        (Draft(), SpeculativeError, "no layers that predict further ahead"),
    ],
)
def test_refused(moe: Model, given: Any, kind: type, message: str) -> None:
    n_threads = threading.active_count()
    with pytest.raises(kind, match=message):
        Engine(moe, MANY, speculative=given)
    assert threading.active_count() <= n_threads


def test_what_drafts_for_another_context(moe: Model, reference: Context, drafters: dict[str, Model]) -> None:
    with Speculative(reference) as other:
        for wrong in (other, moe, reference):
            with pytest.raises(TypeError, match="speculative is <.* a function that is given the engine's"):
                Engine(moe, MANY, speculative=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="no argument 'draft'; it is 'speculative' here"):
            Engine(moe, MANY, draft="draft.gguf")  # type: ignore[call-arg]
        with pytest.raises(SpeculativeError, match="drafts for another context"):
            Engine(moe, MANY, speculative=lambda context: other)
        with Engine(moe, MANY) as engine:
            with pytest.raises(SpeculativeError, match="drafts for another context: .* given to the engine, Engine"):
                engine.generate("the", speculative=other)
            for ask in (engine.generate, engine.agenerate):
                with pytest.raises(ValueError, match="clever"):
                    ask("the", speculative="clever")
                with pytest.raises(TypeError, match=r"takes one kind of n-grams, not a list, such as 'ngram-simple'"):
                    ask("the", speculative=["ngram-simple"])  # type: ignore[typeddict-item]
                for model in (5, Draft("draft.gguf")):
                    with pytest.raises(TypeError, match="speculative is .*a model that drafts is given to the engine"):
                        ask("the", speculative=model)  # type: ignore[typeddict-item]
                with pytest.raises(SpeculativeError, match="which takes a model: .*given to the engine"):
                    ask("the", speculative="draft-mtp")
            with Sampler.greedy() as sampler:
                assert engine.generate("the", sampler=sampler, max_tokens=2, speculative="auto").complete().text
            check(engine)


def test_a_memory_that_cannot_take_back(tiny_path: Callable[..., Path]) -> None:
    with Model.load_from_file(tiny_path(arch="lfm2", n_layer=4), CPU) as model, Engine(model, MANY) as engine:
        with pytest.raises(SpeculativeError, match="n_rs_seq"):
            engine.generate("the", speculative="ngram-simple")
        with pytest.raises(SpeculativeError, match="n_rs_seq"):
            engine.agenerate("the", speculative="auto")
        assert engine.generate("the", max_tokens=3).complete().usage.generated_tokens == 3
