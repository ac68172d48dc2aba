"""Drafts that do not go with a target: one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import edited
import gguf
import numpy as np
import pytest
import tiny
from drafts import drafting, prompts

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
from moebind.context.draft_checks import FROM_STATES, NGRAMS, VOCAB_DIFFERENCE_MAX, kinds_of

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


def with_more_tokens(path: Path, n: int, **more: object) -> Path:
    """Write a tiny model that has so many tokens more, at the end."""
    shape = tiny.Shape(n_layer=1)
    metadata, tensors = tiny._metadata(shape), tiny._tensors(shape, np.random.default_rng(shape.seed))
    for name in ("token_embd.weight", "output.weight"):
        tensors[name] = np.vstack([tensors[name], tensors[name][:n]])
    tokens = [*tiny.TOKENS, *(f"<more {i}>" for i in range(n))]
    normal = [int(gguf.TokenType.NORMAL)]
    metadata |= {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [*metadata["tokenizer.ggml.token_type"], *normal * n],  # type: ignore[misc]
        **more,
    }
    tiny._write_file(path, "llama", metadata, tensors)
    return path


def test_other_vocabularies(moe: Model, edit: Callable[..., edited.Edited], demo: Model) -> None:
    with demo.new_context(EXACT) as target, moe.new_context(EXACT) as draft:
        with pytest.raises(
            SpeculativeError, match="vocabulary is of type BPE, the draft's SPM; a draft takes the same"
        ):
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


def test_other_ends(tmp_path: Path) -> None:
    def differ(target: dict[str, object], draft: dict[str, object], message: str) -> None:
        paths = (with_more_tokens(tmp_path / f"{i}.gguf", 0, **more) for i, more in enumerate((target, draft)))
        one, other = (Model.load_from_file(path, CPU) for path in paths)
        with one, other:
            refused(one, other, f"the target's texts {message}; a draft takes the same vocabulary")

    ends, five = {"tokenizer.ggml.add_eos_token": True}, {"tokenizer.ggml.eos_token_id": 5}
    differ({}, {"tokenizer.ggml.add_bos_token": False}, "begin with token 1, the draft's begin with no such token")
    differ({}, ends, "end with no such token, the draft's end with token 2")
    differ(ends, {}, "end with token 2, the draft's end with no such token")
    differ(ends, ends | five, "end with token 2, the draft's end with token 5")


@pytest.mark.parametrize("n", [VOCAB_DIFFERENCE_MAX, VOCAB_DIFFERENCE_MAX + 1])
def test_vocabularies_of_other_lengths(moe: Model, tmp_path: Path, n: int) -> None:
    """At the end they may differ: either may have the longer one."""
    with Model.load_from_file(with_more_tokens(tmp_path / "more.gguf", n), CPU) as more:
        assert more.n_vocab == moe.n_vocab + n
        if n > VOCAB_DIFFERENCE_MAX:
            refused(moe, more, f"the target has {moe.n_vocab} tokens, the draft {moe.n_vocab + n}; a draft takes")
            refused(more, moe, f"the target has {more.n_vocab} tokens, the draft {moe.n_vocab}; a draft takes")
            return
        for target, draft in ((moe, more), (more, moe)):
            with drafting(target, draft, EXACT) as made:
                made.check([*prompts(8), [1, 270, 280, target.n_vocab - 1, 5]], max_tokens=24)
                assert made.target.timings().n_drafted > 0


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
