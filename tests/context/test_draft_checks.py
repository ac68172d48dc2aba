"""Drafts that do not go with a target: one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import edited
import pytest

from conftest import CPU, EXACT
from moebind import (
    ContextParams,
    ContextType,
    Model,
    ModelLoadError,
    ModelParams,
    Speculative,
    SpeculativeError,
    SpeculativeType,
)
from moebind.context.draft_checks import FROM_STATES, NGRAMS, kinds_of

MakeTiny = Callable[..., Path]


def refused(
    target: Model,
    draft: Model,
    message: str,
    params: ContextParams = EXACT,
    draft_params: ContextParams | None = None,
    **options: object,
) -> None:
    with target.new_context(params) as one, draft.new_context(draft_params or params) as other:
        with pytest.raises(SpeculativeError, match=message):
            Speculative(one, other, **options)  # type: ignore[arg-type]
        assert one.generate("the", max_tokens=2).complete().tokens


def test_every_kind_is_of_one_sort() -> None:
    assert NGRAMS | FROM_STATES | {SpeculativeType.DRAFT_SIMPLE} == set(SpeculativeType)
    assert not NGRAMS & FROM_STATES


def test_names() -> None:
    assert kinds_of("ngram-map-k4v") == (SpeculativeType.NGRAM_MAP_K4V,)
    assert kinds_of(["ngram-mod", 9, SpeculativeType.DRAFT_MTP]) == (
        SpeculativeType.NGRAM_MOD,
        SpeculativeType.DRAFT_MTP,
    )


def test_other_vocabularies(moe: Model, edit: Callable[..., edited.Edited], demo: Model) -> None:
    import tiny

    with demo.new_context(EXACT) as target, moe.new_context(EXACT) as draft:
        with pytest.raises(SpeculativeError, match="a draft takes the same vocabulary as the target"):
            Speculative(target, draft)
    tokens = [*tiny.TOKENS[:-1], "▁else"]
    for changes, message in (
        ({"tokenizer.ggml.tokens": tokens}, f"token {len(tokens) - 1} is "),
        ({"tokenizer.ggml.bos_token_id": 2}, "texts begin with token 1, the draft's begin with token 2"),
    ):
        changed = edit(n_expert=4)
        for key, value in changes.items():
            changed.set(key, value)
        with Model.load_from_file(changed.write(), CPU) as other:
            refused(moe, other, message)


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (EXACT.with_n_seq_max(2).with_n_ctx(512), "2 sequences, and the target's 1"),
        (EXACT.with_n_ctx(256), "256 tokens in each sequence, and the target's 512"),
    ],
)
def test_a_context_that_is_too_small(moe: Model, draft: ContextParams, message: str) -> None:
    refused(moe, moe, message, EXACT.with_n_ctx(512), draft)


def test_a_file_that_is_not_complete(moe: Model, tiny_path: MakeTiny, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    data = tiny_path(n_expert=4).read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelLoadError, match="is cut off"):
        Model.load_from_file(cut, CPU)


def test_models_that_cannot_draft(moe: Model, bert: Model, tiny_path: MakeTiny) -> None:
    for shape in ({"arch": "mamba"}, {"arch": "lfm2", "n_layer": 4}):
        with Model.load_from_file(tiny_path(**shape), CPU) as recurrent:
            refused(moe, recurrent, "recurrent")
    with bert.new_context(EXACT) as encoder, moe.new_context(EXACT) as target:
        with pytest.raises(SpeculativeError, match="generates no text"):
            Speculative(target, encoder)
        with pytest.raises(SpeculativeError, match="generates no text"):
            Speculative(encoder)
    with Model.load_from_file(tiny_path(n_expert=4), CPU.with_no_alloc(True)) as empty:
        with moe.new_context(EXACT) as target, empty.new_context(EXACT) as draft:
            with pytest.raises(SpeculativeError, match="cannot draft"):
                Speculative(target, draft)


def test_a_draft_of_another_kind(moe: Model, drafters: dict[str, Model], tiny_path: MakeTiny) -> None:
    refused(moe, drafters["near"], "is a draft of kind DRAFT_SIMPLE", kind=SpeculativeType.DRAFT_MTP)
    refused(moe, drafters["near"], "which takes no draft", kind="ngram-simple")
    refused(moe, drafters["near"], "one draft is one of them", kind=["draft-simple", "draft-mtp"])
    with moe.new_context(EXACT) as target, pytest.raises(SpeculativeError, match="the target itself"):
        Speculative(target, target)
    path = tiny_path(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4, n_embd=128)
    with Model.load_from_file(path, CPU.with_load_mtp(True)) as other:
        refused(moe, other, "hidden states of 128 numbers", draft_params=EXACT.with_ctx_type(ContextType.MTP))


def test_drafts_that_were_made_for_another_model(
    tiny_path: MakeTiny, architecture_path: Callable[..., Path], moe: Model
) -> None:
    with Model.load_from_file(architecture_path("eagle3", 2), CPU) as eagle:
        with Model.load_from_file(architecture_path("qwen3", 1), CPU) as other:
            with other.new_context(EXACT) as target, other.new_context(EXACT) as third:
                with eagle.new_context(EXACT, ctx_other=third) as draft:
                    with pytest.raises(SpeculativeError, match="another ctx_other"):
                        Speculative(target, draft)
        with Model.load_from_file(tiny_path(n_embd=128), CPU) as wide, wide.new_context(EXACT) as target:
            with eagle.new_context(EXACT, ctx_other=target) as draft:
                with pytest.raises(SpeculativeError, match="made for another model"):
                    Speculative(target, draft)
    with Model.load_from_file(architecture_path("dflash", 2), CPU) as dflash:
        with Model.load_from_file(architecture_path("qwen3", 1), CPU) as other, other.new_context(EXACT) as target:
            with dflash.new_context(EXACT, ctx_other=target) as draft:
                with pytest.raises(SpeculativeError, match="no mask token"):
                    Speculative(target, draft)


def test_two_cannot_draft_for_each_other(moe: Model, drafters: dict[str, Model]) -> None:
    with moe.new_context(EXACT) as one, drafters["same"].new_context(EXACT) as other, Speculative(one, other):
        with pytest.raises(SpeculativeError, match="wait for each other"):
            Speculative(other, one)


def test_loads_without_weights(tiny_path: MakeTiny) -> None:
    params = ModelParams(n_gpu_layers=0, devices=(), no_alloc=True)
    with Model.load_from_file(tiny_path(n_expert=4), params) as empty, empty.new_context(EXACT) as target:
        with pytest.raises(SpeculativeError, match="without its weights"):
            Speculative(target)
