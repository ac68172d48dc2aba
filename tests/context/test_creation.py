"""What a context is made with: values that go together, caches that fit, pooling, another context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bounds
import numpy as np
import pytest
import tiny  # put on the path by conftest.py
from computed import TOKENS, logits_of
from pooled import EMBEDDING, rewritten

from conftest import CPU, EXACT, SMALL
from moebind import (
    Batch,
    ClosedError,
    ContextCreationError,
    ContextParams,
    EmbeddingsError,
    FlashAttnType,
    GgmlType,
    Model,
    PoolingType,
)

MakeTiny = Callable[..., Path]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SMALL.with_n_seq_max(200).with_n_batch(64), "n_seq_max is 200"),
        (SMALL.with_n_outputs_max(1).with_n_seq_max(4), "n_seq_max is 4"),
        (SMALL.with_n_ctx(2**27), "GiB"),
        (SMALL.with_type_k(GgmlType.Q8_0).with_flash_attn_type(FlashAttnType.DISABLED), "in blocks of 32"),
        (SMALL.with_type_v(GgmlType.Q8_0).with_flash_attn_type(FlashAttnType.DISABLED), "llama.cpp: "),
    ],
)
def test_parameters_that_do_not_go_together(tiny_path: MakeTiny, params: ContextParams, message: str) -> None:
    with Model.load_from_file(tiny_path(n_layer=4, n_expert=4), CPU) as model:
        if "GiB" in message:
            params = params.with_n_ctx(2**27).with_type_k(GgmlType.F32).with_type_v(GgmlType.F32)
        with pytest.raises(ContextCreationError, match=message):
            model.new_context(params)
        with model.new_context(SMALL) as context:
            context.decode(Batch.get_one([1]))


def test_a_model_that_claims_a_longer_context_than_there_can_be(tiny_path: MakeTiny) -> None:
    params = CPU.with_kv_override("llama.context_length", 2**27 + 1)
    with Model.load_from_file(tiny_path(n_layer=4, n_expert=4), params) as model:
        with pytest.raises(ContextCreationError, match="model's own 134217729; at most 134217728"):
            model.new_context(SMALL.with_n_ctx(0))


def test_params_of_the_wrong_type(moe: Model) -> None:
    with pytest.raises(TypeError, match="ContextParams"):
        moe.new_context({"n_ctx": 256})  # type: ignore[arg-type]


# --- pooling, and kinds of models ---


def test_rank_takes_a_head(bert: Model, dense: Model) -> None:
    for model in (bert, dense):
        with pytest.raises(ContextCreationError, match="classification head"):
            model.new_context(EMBEDDING.with_pooling_type(PoolingType.RANK))
        with pytest.raises(EmbeddingsError, match="classification head"):
            model.rerank("a", ["b"])


def test_a_file_can_ask_for_scores_without_a_head(tmp_path: Path) -> None:
    shape = tiny.Shape(arch="bert", n_head_kv=4, n_ctx_train=64)
    path = rewritten(tmp_path / "model.gguf", shape, bert__pooling_type=int(PoolingType.RANK))
    with Model.load_from_file(path, CPU) as model:
        with pytest.raises(ContextCreationError, match="classification head"):
            model.new_context(EMBEDDING)
        with model.new_context(EMBEDDING.with_embeddings(False)) as context:
            with pytest.raises(EmbeddingsError, match="classification head"):
                context.set_embeddings(True)
        with pytest.raises(EmbeddingsError, match="scores texts"):
            model.embed("a")
        assert model.embed("a", pooling_type=PoolingType.CLS).shape == (1, model.n_embd_out)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (EXACT.with_n_seq_max(2).with_n_ctx(512), "kv_unified=True"),
        (EXACT.with_embeddings(True).with_pooling_type(PoolingType.MEAN), "use NONE"),
    ],
)
def test_contexts_that_an_encoder_decoder_cannot_have(t5: Model, params, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ContextCreationError, match=message):
        t5.new_context(params)


def test_mean_pooling_takes_a_multiple(dense: Model) -> None:
    params = EXACT.with_n_seq_max(3).with_kv_unified(True).with_pooling_type(PoolingType.MEAN)
    with pytest.raises(ContextCreationError, match="multiple of n_seq_max"):
        dense.new_context(params.with_embeddings(True))
    with dense.new_context(params) as context, pytest.raises(EmbeddingsError, match="multiple of n_seq_max"):
        context.set_embeddings(True)


# --- ctx_other ---


def test_the_other_context_is_kept(dense: Model) -> None:
    other = dense.new_context(SMALL)
    with dense.new_context(SMALL, ctx_other=other) as context:
        other.close()
        context.decode(Batch.get_one(TOKENS))
        np.testing.assert_allclose(context.get_logits_ith(-1), logits_of(dense), atol=bounds.ORDER)


def test_the_other_context_is_checked(dense: Model) -> None:
    other = dense.new_context(SMALL)
    other.close()
    with pytest.raises(ClosedError):
        dense.new_context(SMALL, ctx_other=other)
    for wrong in (3, dense):
        with pytest.raises(TypeError, match="ctx_other"):
            dense.new_context(SMALL, ctx_other=wrong)  # type: ignore[arg-type]
