"""What drafts for a context: how it is made, and how it ends."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from drafts import NGRAMS, Drafting, drafting, prompts

from conftest import EXACT
from moebind import ClosedError, ContextParams, Draft, Model, Speculative, SpeculativeError, SpeculativeType, ffi, lib


def test_the_kinds_are_llama_cpps() -> None:
    size = lib.moebind_speculative_types(ffi.NULL, 0)
    names = ffi.new("char[]", size)
    lib.moebind_speculative_types(names, size)
    theirs = ffi.buffer(names)[:].decode().split(",")
    ours = {int(kind): kind.name.lower().replace("_", "-") for kind in SpeculativeType}
    assert theirs == ["none", *(ours[number] for number in range(1, len(theirs)))]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"n_max": 0}, ValueError, "n_max is 0; it takes 1 to 1024"),
        ({"n_max": 2, "n_min": 3}, ValueError, "n_min is 3; it takes at most n_max, 2"),
        ({"n_min": -1}, ValueError, "n_min"),
        ({"p_min": 1.1}, ValueError, "p_min"),
        ({"n_match": 0}, ValueError, "n_match"),
        ({"min_hits": 2**16}, ValueError, "min_hits"),
        ({"n_max": 2, "n_match": 3}, ValueError, "at least as many as it compares"),
        ({"auto": 1}, TypeError, "auto"),
        ({"kind": []}, ValueError, "kind is empty"),
        ({"kind": "none"}, ValueError, "ngram-simple"),
        ({"kind": 2.0}, TypeError, "kind"),
        ({"kind": 77}, ValueError, "kind"),
        ({"kind": SpeculativeType.DRAFT_SIMPLE}, SpeculativeError, "DRAFT_SIMPLE takes a draft"),
        ({"draft": 3}, TypeError, "it takes a Context"),
    ],
)
def test_arguments(moe: Model, given: dict[str, object], error: type[Exception], message: str) -> None:
    with moe.new_context(EXACT) as target:
        with pytest.raises(error, match=message):
            Speculative(target, **given)  # type: ignore[arg-type]
        assert target.generate("the", max_tokens=3).complete().tokens


@pytest.mark.parametrize("n_max", [1, 2, 1024])
@pytest.mark.parametrize("kind", NGRAMS)
def test_extreme_numbers(moe: Model, kind: SpeculativeType, n_max: int) -> None:
    for n_match in (1, 1024):
        if kind == SpeculativeType.NGRAM_SIMPLE and n_max < n_match:
            continue
        with drafting(moe, None, EXACT, kind=kind, n_max=n_max, n_min=0, n_match=n_match, min_hits=1) as made:
            made.check(["the a of " * 8], max_tokens=20)


def test_it_says_what_it_is(moe: Model, drafters: dict[str, Model]) -> None:
    with drafting(moe, drafters["near"], EXACT, n_max=5) as made:
        assert repr(made.made) == "<Speculative DRAFT_SIMPLE, n_max=5>"
        assert made.made.kinds == (SpeculativeType.DRAFT_SIMPLE,)
        assert made.made.target_context is made.target
        made.made.close()
        made.made.close()
        assert repr(made.made) == "<Speculative, closed>"
        with pytest.raises(ClosedError):
            _ = made.made.n_max


def test_closed_while_a_text_goes_on(moe: Model, drafters: dict[str, Model]) -> None:
    with drafting(moe, drafters["near"], EXACT) as made:
        pieces = made.target.generate("the a of", max_tokens=30, speculative=made.made)
        next(pieces)
        made.made.close()
        with pytest.raises(ClosedError):
            list(pieces)
        made.check(["the a of"], max_tokens=9, plainly=True)
        # The draft's context is its own again, and can draft for another.
        draft = made.made.draft_context
        assert draft is not None
        with Speculative(made.target, draft) as again:
            Drafting(made.target, made.reference, again).check(prompts(2), max_tokens=9)


def test_contexts_that_are_closed(moe: Model, drafters: dict[str, Model]) -> None:
    target = moe.new_context(EXACT)
    draft = drafters["near"].new_context(EXACT)
    made = Speculative(target, draft)
    draft.close()
    with pytest.raises(ClosedError):
        target.generate("the a of", max_tokens=30, speculative=made).complete()
    assert target.generate("the a of", max_tokens=3).complete().tokens
    target.close()
    assert made.closed
    with pytest.raises(ClosedError, match="its target context was closed"):
        _ = made.n_max
    with pytest.raises(ClosedError):
        Speculative(target)


def test_nothing_leaks(moe: Model, drafters: dict[str, Model]) -> None:
    gc.collect()
    before = lib.moebind_owned_alive()
    for _ in range(3):
        target, draft = moe.new_context(EXACT), drafters["near"].new_context(EXACT)
        made = Speculative(target, draft)
        target.generate("the", max_tokens=4, speculative=made).complete()
        target.generate("the", max_tokens=4, speculative="auto").complete()
        dropped = weakref.ref(made)
        draft.close()
        target.close()
        del made, target, draft
    gc.collect()
    assert dropped() is None
    assert lib.moebind_owned_alive() == before


def test_arrays_outlive_what_drafts(moe: Model, drafters: dict[str, Model]) -> None:
    with moe.new_context(EXACT) as target, drafters["near"].new_context(EXACT) as draft:
        target.generate("the", max_tokens=2).complete()
        shown = target.get_logits_ith(-1)
        kept = shown.copy()
        with Speculative(target, draft, n_max=16) as made:
            target.generate("the a of", max_tokens=30, speculative=made).complete()
            target.generate("it is", max_tokens=30, speculative=made).complete()
        np.testing.assert_array_equal(np.isfinite(shown), np.isfinite(kept))


def test_threads_take_turns(moe: Model, drafters: dict[str, Model]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    params = ContextParams(n_ctx=512, n_seq_max=2, n_threads=1, n_threads_batch=1, kv_unified=False)
    with drafting(moe, drafters["near"], params) as made, ThreadPoolExecutor(2) as pool:

        def text(seq_id: int) -> tuple[int, ...]:
            pieces = made.target.generate("the a of", max_tokens=40, seq_id=seq_id, speculative=made.made)
            return pieces.complete().tokens

        texts = list(pool.map(text, [0, 1]))
    assert texts[0] == texts[1]


def test_kinds_by_a_name_that_none_has(moe: Model) -> None:
    with moe.new_context(EXACT) as context:
        for call in (context.generate, lambda prompt, **given: context.generate_many([prompt], **given)):
            with pytest.raises(ValueError, match="^speculative is 'ngram'; it takes one of auto, ngram-simple, "):
                call([1, 2], speculative="ngram")


@pytest.mark.parametrize("given", [Draft("d.gguf"), "d.gguf", "draft-simple", ["ngram-simple", "ngram-mod"]])
def test_what_a_text_cannot_be_given_says_what_can(moe: Model, given: object) -> None:
    with moe.new_context(EXACT) as context:
        hint = r"Speculative\(context, draft_context\)"
        if isinstance(given, list):
            hint = r"several kinds as Speculative\(context, kind=\[\.\.\.\]\)$"
        with pytest.raises((TypeError, ValueError, SpeculativeError), match=hint):
            context.generate([1, 2], speculative=given)  # type: ignore[arg-type]
