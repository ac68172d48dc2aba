"""Each kind of draft: the text is the one without."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drafts
import pytest
from drafts import (
    EAGER,
    NGRAMS,
    REPEATED,
    Drafting,
    check_same,
    drafting,
    drafting_from_states,
    prompts,
    repeating,
)

from conftest import CPU, EXACT
from moebind import Context, ContextType, Gguf, Model, Speculative, SpeculativeError, SpeculativeType
from moebind.context import speculate

MakeTiny = Callable[..., Path]
LONG = EXACT.with_n_ctx(512)


@pytest.mark.parametrize("name", ["same", "other", "near"])
def test_a_draft_model(moe: Model, drafters: dict[str, Model], name: str) -> None:
    with drafting(moe, drafters[name], LONG, n_max=4) as made:
        made.check(prompts(50), max_tokens=24)
        assert made.target.timings().n_drafted > 50


def test_drafts_are_right_as_often_as_they_should(moe: Model, drafters: dict[str, Model]) -> None:
    accepted = {}
    for name, model in drafters.items():
        with drafting(moe, model, LONG) as made:
            for prompt in prompts(6):
                made.target.generate(prompt, max_tokens=32, speculative=made.made).complete()
            accepted[name] = made.target.timings().acceptance
            made.target.reset_timings()
            assert math.isnan(made.target.timings().acceptance)
    assert accepted["same"] > 0.95
    assert accepted["other"] < 0.2 < accepted["near"] < 0.95


@pytest.mark.parametrize("kind", NGRAMS)
def test_n_grams(moe: Model, kind: SpeculativeType) -> None:
    with drafting(moe, None, LONG, kind=kind, **EAGER) as made:
        made.check(prompts(50), max_tokens=24)
        made.check(["the a of " * 12], max_tokens=150)
    # A text that goes on as its prompt does.
    with drafting(moe, None, LONG, kind=kind, **EAGER) as made, repeating(moe) as sampler:
        prompt = REPEATED * 4
        text = made.target.generate(prompt, sampler=sampler, max_tokens=60, speculative=made.made).complete()
        assert text.text == REPEATED * 6
        timings = made.target.timings()
        assert 20 < timings.n_accepted <= timings.n_drafted
        assert timings.t_draft_ms > 0


def test_several_kinds_at_once(moe: Model, drafters: dict[str, Model]) -> None:
    kinds = ["ngram-map-k", SpeculativeType.DRAFT_SIMPLE]
    with drafting(moe, drafters["near"], LONG, kind=kinds, **EAGER) as made:
        made.check(prompts(12), max_tokens=24)


@pytest.mark.parametrize("n_seq_max", [1, 2])
def test_multi_token_prediction(mtp: Model, n_seq_max: int) -> None:
    params = LONG.with_n_seq_max(n_seq_max)
    with drafting(mtp, mtp, params, params.with_ctx_type(ContextType.MTP)) as made:
        assert made.made.kinds == (SpeculativeType.DRAFT_MTP,)
        for seq_id in range(n_seq_max):
            made.check(prompts(50 // n_seq_max), max_tokens=24, seq_id=seq_id)
        timings = made.target.timings()
        assert 50 < timings.n_accepted < timings.n_drafted
        made.made.close()
        # It is as it was before: no hidden states are kept for anybody.
        made.check(prompts(2), max_tokens=8, plainly=True)


def test_layers_ahead_in_a_file_of_their_own(tmp_path: Path) -> None:
    """The model has none, and the file beside it nothing else."""
    trunk = drafts.write_mtp(tmp_path / "model.gguf", ahead=False)
    heads = drafts.write_mtp(tmp_path / "mtp-model.gguf", trunk=False)
    assert not any(name.startswith("blk.0.") for name in Gguf.from_file(heads).tensors)
    with (
        Model.load_from_file(trunk, CPU) as model,
        Model.load_from_file(heads, CPU.with_load_mtp(True)) as layers,
    ):
        assert (model.n_layer_nextn, layers.n_layer_nextn) == (0, 1)
        for ctx_other, n in ((False, 50), (True, 4)):
            with drafting(model, layers, LONG, LONG.with_ctx_type(ContextType.MTP), ctx_other=ctx_other) as made:
                assert made.made.kinds == (SpeculativeType.DRAFT_MTP,)
                made.check(prompts(n), max_tokens=24)
                timings = made.target.timings()
                assert 0 < timings.n_accepted < timings.n_drafted


@pytest.mark.parametrize("name", drafts.EACH_FROM_STATES)
def test_drafts_from_hidden_states(architecture_path: Callable[..., Path], name: str) -> None:
    with drafting_from_states(architecture_path, name, LONG, n_max=3) as made:
        assert made.made.kinds == (drafts.FROM_STATES[name].kind,)
        made.check(prompts(50), max_tokens=24)
        assert made.target.timings().n_drafted > 50


def test_a_recurrent_memory_goes_back_by_its_snapshots(tiny_path: MakeTiny, drafters: dict[str, Model]) -> None:
    with Model.load_from_file(tiny_path(arch="lfm2", n_layer=4), CPU) as model:
        with drafting(model, drafters["near"], LONG.with_n_rs_seq(3), LONG, n_max=8) as made:
            made.check(prompts(50), max_tokens=24)
            timings = made.target.timings()
            assert timings.n_drafted > 50
            assert timings.n_accepted < timings.n_drafted


@pytest.mark.parametrize("shape", [{"arch": "lfm2", "n_layer": 4}, {"arch": "mamba"}])
def test_a_memory_that_cannot_go_back_is_refused(tiny_path: MakeTiny, shape: dict[str, object]) -> None:
    with Model.load_from_file(tiny_path(**shape), CPU) as model, model.new_context(EXACT) as target:
        with pytest.raises(SpeculativeError, match="n_rs_seq"):
            target.generate("the", speculative="ngram-simple")
        assert target.generate("the", max_tokens=4).complete().usage.generated_tokens > 0


@pytest.fixture(params=["other", "n-grams"])
def sliding(request: pytest.FixtureRequest, tiny_path: MakeTiny, drafters: dict[str, Model]) -> Iterator[Drafting]:
    """Drafts for a model with a sliding window.

    The cache has room for the window and one computation: what is drafted wrongly takes old tokens' places.
    """
    params = EXACT.with_n_ctx(1024).with_n_ubatch(8).with_n_batch(64).with_swa_full(False)
    grams: dict[str, Any] = {"kind": "ngram-map-k", **EAGER, "n_match": 1}
    with Model.load_from_file(tiny_path(arch="gemma4", n_layer=4), CPU) as model:
        assert model.n_swa < 100
        simple = request.param != "n-grams"
        with drafting(
            model, drafters[request.param] if simple else None, params, **({"n_max": 32} if simple else grams)
        ) as made:
            yield made


def test_a_sliding_window(sliding: Drafting) -> None:
    sliding.check(["the a of to and"], max_tokens=300)
    sliding.check(prompts(8), max_tokens=90)
    # Longer than the window, and what follows it again.
    long = "the a of to and in it is " * 12
    sliding.check([long, long, long + "was", long[:60]], max_tokens=90)
    timings = sliding.target.timings()
    assert timings.n_drafted > 0
    assert timings.n_accepted < timings.n_drafted


def test_a_sliding_window_is_used_again(sliding: Drafting) -> None:
    """A text goes on after one with drafts, whose wrong ends were taken back."""
    target, reference = sliding.target, sliding.reference
    prompt = target.model.str_to_token("the a of to and").tolist()
    n_cached = 0
    for _ in range(5):
        drafted = target.generate(prompt, max_tokens=40, speculative=sliding.made).complete()
        plain = reference.generate(prompt, max_tokens=40, reuse_prefix=False).complete()
        check_same(reference, prompt, drafted, plain, max_tokens=40)
        n_cached = drafted.usage.cached_tokens
        prompt = [*prompt, *drafted.tokens, 270]
    assert n_cached >= len(prompt) - 2 * 42
    # Without drafts it goes on from there, too.
    plainly = target.generate(prompt, max_tokens=20).complete()
    check_same(reference, prompt, plainly, reference.generate(prompt, max_tokens=20).complete(), max_tokens=20)


def test_a_memory_that_does_not_go_back_after_all(
    moe: Model, drafters: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = speculate.cut_back

    def no_memory_does(context: Context, native: object, seq: int, _n: int) -> bool:
        cut(context, native, seq, 0)
        return False

    with drafting(moe, drafters["other"], LONG) as made:
        monkeypatch.setattr(speculate, "cut_back", no_memory_does)
        made.check(prompts(3), max_tokens=16)
        assert made.target.timings().n_drafted == 9  # three, once in each text


def test_another_device_drafts(moe: Model, tiny_path: MakeTiny, device: object) -> None:
    from moebind import ModelParams

    with Model.load_from_file(tiny_path(n_expert=4), ModelParams(devices=[device], n_gpu_layers=-1)) as drafts:  # type: ignore[list-item]
        with drafting(moe, drafts, LONG) as made:
            made.check(prompts(4), max_tokens=24)
            assert made.target.timings().acceptance > 0.5


def test_somebody_computes_in_the_drafts_context(moe: Model, drafters: dict[str, Model]) -> None:
    from moebind import Batch

    with drafting(moe, drafters["near"], LONG) as made:
        made.check(["it is"], max_tokens=9)
        draft = made.made.draft_context
        assert draft is not None
        draft.decode(Batch.get_one([5, 6, 7]))
        made.check(["it is", "the a of"], max_tokens=9)
        draft.kv_cache_clear()
        made.check(["it is", "the a of"], max_tokens=9)


def test_a_draft_that_has_no_room(moe: Model, drafters: dict[str, Model]) -> None:
    # Another sequence has most of the cache that the draft's sequences share.
    params = LONG.with_n_seq_max(2).with_kv_unified(True)
    with drafting(moe, drafters["near"], params) as made:
        draft = made.made.draft_context
        assert isinstance(draft, Context)
        list(draft.generate([7] * 480, max_tokens=20, seq_id=1))
        made.check(["the a of"], max_tokens=60)


def test_a_draft_of_another_speculative_is_refused(moe: Model, drafters: dict[str, Model]) -> None:
    with drafting(moe, drafters["near"], LONG) as made, pytest.raises(SpeculativeError, match="another Speculative"):
        Speculative(made.reference, made.made.draft_context)
