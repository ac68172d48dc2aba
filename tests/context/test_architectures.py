"""Models that are no plain decoders, several sequences in one batch, and how a context computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import bounds
import computed
import gguf_architectures
import numpy as np
import pytest
from computed import TOKENS

from conftest import CPU, EXACT
from moebind import Batch, BatchError, BatchExt, EmbeddingsError, Gguf, Model, ModelLoadError, ProcessType, Sampler


@pytest.fixture(scope="module")
def mamba(tiny_path: Callable[..., Path]) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(arch="mamba"), CPU) as model:
        yield model


@pytest.fixture(scope="module")
def swa(tiny_path: Callable[..., Path]) -> Iterator[Model]:
    with Model.load_from_file(tiny_path(arch="granite_swa", n_expert=4), CPU) as model:
        yield model


def logits_of(model: Model, tokens: list[int], start: list[int] | None = None) -> np.ndarray:
    return computed.logits_of(model, tokens, EXACT, start)


# --- an encoder and a decoder ---


def test_a_decoder_looks_at_what_was_encoded(t5: Model) -> None:
    assert (t5.has_encoder, t5.has_decoder) == (True, True)
    first = logits_of(t5, [5, 7], start=[10, 11, 12])
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, logits_of(t5, [5, 7], start=[10, 11, 12]))
    assert not np.allclose(first, logits_of(t5, [5, 7], start=[10, 11, 13]), atol=1e-3)


def test_decoding_goes_on_step_by_step(t5: Model) -> None:
    expected = logits_of(t5, [5, 7, 8], start=[10, 11, 12])
    with t5.new_context(EXACT) as context:
        context.encode(Batch.get_one([10, 11, 12]))
        for token in (5, 7, 8):
            context.decode(Batch.get_one([token]))
        np.testing.assert_allclose(context.get_logits_ith(-1), expected, atol=bounds.ORDER)


def test_what_was_not_encoded_is_not_decoded(t5: Model) -> None:
    # libllama asserts it in the middle of a decode, or lets a sequence look at nothing.
    with t5.new_context(EXACT.with_n_seq_max(2).with_kv_unified(True)) as context:
        with pytest.raises(BatchError, match="sequence 0 was not encoded"):
            context.decode(Batch.get_one([5]))
        with pytest.raises(BatchError, match="was not encoded"):
            context.generate([5, 6]).__next__()
        context.encode(Batch.get_one([10, 11, 12]))
        context.decode(Batch.get_one([5]))
        batch = Batch(1)
        batch.add(5, 0, 1, True)
        with pytest.raises(BatchError, match="sequence 1 was not encoded"):
            context.decode(batch)


def test_sequences_are_encoded_together(t5: Model) -> None:
    with t5.new_context(EXACT.with_n_seq_max(2).with_kv_unified(True)) as context:
        batch = Batch(5)
        batch.add_sequence([10, 11, 12], 0)
        batch.add_sequence([20, 21], 1)
        context.encode(batch)
        batch = Batch(4)
        batch.add_sequence([5, 7], 0)
        batch.add_sequence([5, 8], 1)
        context.decode(batch)
        np.testing.assert_allclose(context.get_logits_ith(1), logits_of(t5, [5, 7], [10, 11, 12]), atol=bounds.ORDER)
        np.testing.assert_allclose(context.get_logits_ith(3), logits_of(t5, [5, 8], [20, 21]), atol=bounds.ORDER)


def test_encoder_outputs(t5: Model) -> None:
    with t5.new_context(EXACT.with_embeddings(True)) as context:
        context.encode(Batch.get_one([10, 11, 12]))
        assert context.get_embeddings().shape == (3, t5.n_embd_out)
        assert np.isfinite(context.get_embeddings()).all()
        with pytest.raises(IndexError, match="no logits"):
            context.get_logits()
        with Sampler.greedy() as greedy, pytest.raises(IndexError, match="no logits"):
            greedy.sample(context)
        context.decode(Batch.get_one([5]))
        assert context.get_logits().shape == (1, t5.n_vocab)


# --- recurrent state ---


def test_a_recurrent_state_goes_forward_only(mamba: Model) -> None:
    assert mamba.is_recurrent
    with mamba.new_context(EXACT.with_n_seq_max(2)) as context:
        context.decode(Batch.get_one(TOKENS))
        assert context.kv_cache_seq_rm(0, 3) is False  # a part cannot be forgotten
        assert context.kv_cache_seq_pos_max(0) == 5
        context.kv_cache_seq_cp(0, 1)
        batch = Batch(2)
        batch.add(7, 6, 0, True)
        batch.add(8, 6, 1, True)
        context.decode(batch)
        np.testing.assert_allclose(context.get_logits_ith(0), logits_of(mamba, [*TOKENS, 7]), atol=bounds.ORDER)
        np.testing.assert_allclose(context.get_logits_ith(1), logits_of(mamba, [*TOKENS, 8]), atol=bounds.ORDER)
        assert context.kv_cache_seq_rm(0)
        assert context.kv_cache_seq_pos_max(0) == -1
        context.kv_cache_seq_keep(1)
        context.kv_cache_seq_add(1, None, None, 2)
        context.kv_cache_seq_div(1, None, None, 2)
        assert context.kv_cache_seq_pos_max(1) == 4


def test_a_recurrent_model_generates_anew(mamba: Model) -> None:
    with mamba.new_context(EXACT) as context:
        first = [piece.token for piece in context.generate(TOKENS, max_tokens=6)]
        assert [piece.token for piece in context.generate(TOKENS, max_tokens=6)] == first
        assert [piece.token for piece in context.generate(TOKENS[:3], max_tokens=2)]


def test_snapshots(mamba: Model, dense: Model) -> None:
    for model in (mamba, dense):  # neither can go back in llama.cpp
        with model.new_context(EXACT.with_n_rs_seq(4)) as context:
            assert context.n_rs_seq in {0, 4}


# --- sliding windows ---


def test_a_window_forgets_what_is_behind_it(swa: Model) -> None:
    assert swa.n_swa == 64
    tokens = [3 + i % 200 for i in range(400)]
    params = EXACT.with_n_ctx(512).with_n_ubatch(32)
    with swa.new_context(params.with_swa_full(False)) as context:
        context.decode(Batch.get_one(tokens))
        assert context.kv_cache_seq_pos_max(0) == 399
        assert context.kv_cache_seq_pos_min(0) > 0
        after = context.get_logits_ith(-1).copy()
    with swa.new_context(params.with_swa_full(True)) as context:
        context.decode(Batch.get_one(tokens))
        assert context.kv_cache_seq_pos_min(0) == 0
        np.testing.assert_allclose(after, context.get_logits_ith(-1), atol=bounds.ORDER)


# --- several sequences ---


@pytest.mark.parametrize("unified", [False, True])
def test_sequences_of_one_batch_do_not_see_each_other(dense: Model, unified: bool) -> None:
    sequences = [TOKENS, [1, 60], [1, 270, 271], [5]]
    params = EXACT.with_n_ctx(1024).with_n_seq_max(4).with_kv_unified(unified)
    with dense.new_context(params) as context:
        batch = Batch(sum(map(len, sequences)))
        for seq, tokens in enumerate(sequences):
            batch.add_sequence(tokens, seq)
        context.decode(batch)
        rows = context.get_logits()
        for row, tokens in zip(rows, sequences, strict=True):
            np.testing.assert_allclose(row, logits_of(dense, tokens), atol=bounds.ORDER)


def test_sequences_share_a_prefix(dense: Model) -> None:
    # Once as tokens of all of them, once copied.
    params = EXACT.with_n_seq_max(3).with_kv_unified(True)
    expected = [logits_of(dense, [*TOKENS, last]) for last in (5, 6, 7)]
    for way in ("together", "copied"):
        with dense.new_context(params) as context:
            if way == "together":
                batch = Batch(len(TOKENS), n_seq_max=3)
                for pos, token in enumerate(TOKENS):
                    batch.add(token, pos, [0, 1, 2], False)
            else:
                batch = Batch(len(TOKENS))
                batch.add_sequence(TOKENS, 0)
            context.decode(batch)
            if way == "copied":
                context.kv_cache_seq_cp(0, 1)
                context.kv_cache_seq_cp(0, 2)
            batch = Batch(3)
            batch.extend([5, 6, 7], [len(TOKENS)] * 3, [0, 1, 2], True)
            context.decode(batch)
            np.testing.assert_allclose(context.get_logits(), expected, atol=bounds.ORDER)


def test_tokens_of_several_sequences_take_one_cache(dense: Model) -> None:
    with dense.new_context(EXACT.with_n_ctx(512).with_n_seq_max(2)) as context:
        batch = Batch(1, n_seq_max=2)
        batch.add(5, 0, [0, 1], True)
        with pytest.raises(BatchError, match="kv_unified=True"):
            context.decode(batch)


# --- how a context computes ---


def test_attention_can_look_ahead(dense: Model) -> None:
    with dense.new_context(EXACT.with_n_ubatch(8)) as context:
        assert context.causal_attn
        context.set_causal_attn(False)
        assert not context.causal_attn
        rows = []
        for last in (60, 61):
            context.kv_cache_clear()
            batch = Batch(3)
            batch.add_sequence([1, 7, last], 0, logits_all=True)
            context.decode(batch)
            rows.append(context.get_logits_ith(0).copy())
        assert not np.allclose(rows[0], rows[1], atol=1e-3)
        with pytest.raises(BatchError, match="without causal attention, 8"):
            context.decode(Batch.get_one([1] * 9))
        context.set_causal_attn(True)
        context.kv_cache_clear()
        context.decode(Batch.get_one([1] * 9))


def test_embeddings_of_a_generating_model(dense: Model) -> None:
    with dense.new_context(EXACT) as context:
        context.set_embeddings(True)
        context.decode(Batch.get_one(TOKENS))
        embeddings = context.get_embeddings()
        assert embeddings.shape == (len(TOKENS), dense.n_embd_out)
        kept = embeddings.copy()
        context.set_embeddings(False)
        with pytest.raises(EmbeddingsError):
            context.get_embeddings()
        context.kv_cache_clear()
        context.decode(Batch.get_one(TOKENS[::-1] * 4))
        np.testing.assert_array_equal(embeddings, kept)


# --- draft models ---


@pytest.mark.parametrize("architecture", ["eagle3", "dflash"])
def test_an_encoder_of_states_takes_no_tokens(architecture_path: Callable[[str], Path], architecture: str) -> None:
    # Their graphs have no place for tokens, to which libllama would write all the same.
    with Model.load_from_file(architecture_path(architecture), CPU) as model, model.new_context(EXACT) as context:
        width = {"eagle3": 3, "dflash": 2}[architecture] * model.n_embd
        with pytest.raises(BatchError, match=rf"hidden states of another.*as embeddings of {width} numbers"):
            context.encode(Batch.get_one(TOKENS))
        extended = BatchExt(context)
        extended.add(0, 0, token=5)
        with pytest.raises(BatchError, match="hidden states of another"):
            context.process(extended, ProcessType.ENCODE)
        narrow = np.zeros((2, model.n_embd), np.float32)
        with pytest.raises(BatchError, match="hidden states of another"):
            context.encode(Batch.from_embeddings(narrow))
        with pytest.raises(BatchError, match="hidden states of another, and its decoder takes"):
            context.decode(Batch.from_embeddings(narrow))
        context.encode(Batch.from_embeddings(np.zeros((2, width), np.float32)))


def test_eagle3_decodes_tokens_with_what_its_encoder_made(architecture_path: Callable[[str], Path]) -> None:
    with Model.load_from_file(architecture_path("eagle3"), CPU) as model, model.new_context(EXACT) as context:
        with pytest.raises(BatchError, match=f"BatchExt whose entries.* embedding of {model.n_embd}"):
            context.decode(Batch.get_one(TOKENS))
        with pytest.raises(BatchError, match="BatchExt"):
            next(iter(context.generate(TOKENS, max_tokens=2)))
        batch = BatchExt(context)
        batch.add(0, 0, token=5, embedding=np.zeros(model.n_embd), output=True)
        context.process(batch)
        assert context.get_logits().shape == (1, model.n_vocab)


def test_eagle3_has_a_row_for_each_token(architecture_path: Callable[[str], Path], tmp_path: Path) -> None:
    # llama.cpp takes as many as there are; looking up one beyond the last would end the process.
    vocabulary = gguf_architectures.vocabulary_in(tmp_path)
    candidate = gguf_architectures.Candidate.of("eagle3", vocabulary)
    whole = Gguf.from_file(architecture_path("eagle3"))
    candidate.tensors = {name: list(tensor.shape) for name, tensor in whole.tensors.items()}
    rows = candidate.tensors["token_embd.weight"][1]
    candidate.tensors["token_embd.weight"][1] = rows - 1
    path = candidate.write(tmp_path / "short.gguf", seed=1)
    with pytest.raises(ModelLoadError, match=f"token_embd.weight has {rows - 1} rows for a vocabulary of {rows}"):
        Model.load_from_file(path, CPU)


def test_dflash_decodes_tokens_or_what_its_encoder_reads(architecture_path: Callable[[str], Path]) -> None:
    with Model.load_from_file(architecture_path("dflash"), CPU) as model, model.new_context(EXACT) as context:
        context.decode(Batch.get_one(TOKENS))
        context.kv_cache_clear()
        context.decode(Batch.from_embeddings(np.zeros((2, 2 * model.n_embd), np.float32)))
