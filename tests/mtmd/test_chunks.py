"""Chunks: a prompt in pieces, which keep the memory of the whole."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import projectors
import pytest

from moebind import Context
from moebind.errors import BatchError, ClosedError, MtmdError
from moebind.mtmd import InputChunk, InputChunks, InputChunkType

SeeingMaker = Callable[[str], projectors.Seeing]
KINDS = sorted(projectors.MODELS)


def test_a_prompt_in_pieces(seeing: SeeingMaker) -> None:
    model, mtmd = seeing("gemma3")
    bitmap = seeing("gemma3").bitmap()
    bitmap.id = "cat"
    chunks = mtmd.tokenize(["Look: ", bitmap, " nice"])
    assert [chunk.chunk_type for chunk in chunks] == [InputChunkType.TEXT, InputChunkType.IMAGE, InputChunkType.TEXT]
    assert [chunk.id for chunk in chunks] == [None, "cat", None]
    before = model.str_to_token("Look: ").tolist() + model.str_to_token("<start_of_image>", add_special=False).tolist()
    first, picture, last = chunks
    assert first.text_tokens is not None
    assert first.text_tokens.tolist() == before
    assert picture.text_tokens is None
    assert (picture.n_tokens, picture.n_positions) == (4, 4)
    assert last.text_tokens is not None
    assert chunks.total_tokens == chunks.total_positions == first.text_tokens.size + 4 + last.text_tokens.size
    assert repr(picture) == "<InputChunk of 4 tokens, IMAGE>"
    assert repr(chunks) == f"<3 InputChunks of {chunks.total_tokens} tokens>"


def test_a_sequence(seeing: SeeingMaker) -> None:
    _, mtmd = seeing("gemma3")
    chunks = mtmd.tokenize(["a", seeing("gemma3").bitmap(), "b"])
    assert len(chunks) == 3
    assert chunks[-1].n_tokens == chunks[2].n_tokens
    assert [each.chunk_type for each in chunks[1:]] == [InputChunkType.IMAGE, InputChunkType.TEXT]
    for index in (3, -4):
        with pytest.raises(IndexError, match="there are 3 chunks"):
            chunks[index]
    with pytest.raises(TypeError):
        chunks["0"]  # type: ignore[call-overload]


def test_empty() -> None:
    chunks = InputChunks()
    assert not chunks
    assert (len(chunks), chunks.total_tokens, chunks.total_positions) == (0, 0, 0)
    with pytest.raises(IndexError):
        chunks[0]
    with pytest.raises(TypeError, match=r"chunks are made by MtmdContext\.tokenize"):
        InputChunk()


def test_positions_of_several_dimensions_are_fewer(seeing: SeeingMaker) -> None:
    _, mtmd = seeing("qwen2vl_merger")
    # 28 pixels a token: 5 tokens wide, and 4 high.
    (_, picture, _) = mtmd.tokenize(["a", seeing("qwen2vl_merger").bitmap(), "b"])
    assert mtmd.decode_use_mrope
    assert (picture.n_tokens, picture.n_positions) == (20, 5)


def test_views_and_chunks_outlive_the_whole(seeing: SeeingMaker) -> None:
    _, mtmd = seeing("gemma3")
    chunks = mtmd.tokenize(["some text", seeing("gemma3").bitmap(), "more"])
    expected = mtmd.encode_chunk(chunks[1])
    text, picture = chunks[0], chunks[1]
    tokens = text.text_tokens
    assert tokens is not None
    assert not tokens.flags.writeable
    said = tokens.tolist()
    chunks.close()
    del chunks, text
    gc.collect()
    assert tokens.tolist() == said
    np.testing.assert_array_equal(mtmd.encode_chunk(picture), expected)


def test_a_copy_is_encoded_as_the_chunk_is(seeing: SeeingMaker) -> None:
    _, mtmd = seeing("gemma3")
    chunks = mtmd.tokenize(["a", seeing("gemma3").bitmap(), "b"])
    copy = chunks[1].copy()
    expected = mtmd.encode_chunk(chunks[1])
    chunks.close()
    np.testing.assert_array_equal(mtmd.encode_chunk(copy), expected)
    copy.close()
    with pytest.raises(ClosedError):
        copy.copy()


def decoded(context: Context, seq_id: int = 0) -> int:
    return context.kv_cache_seq_pos_max(seq_id)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_evaluated(seeing: SeeingMaker, kind: str) -> None:
    """As helpers of libmtmd's do it, chunk by chunk; in batches of any size, and after something else."""
    see = seeing(kind)
    chunks = see.mtmd.tokenize(["some text before ", see.bitmap(), " and after"])
    with see.context(n_batch=512, n_ubatch=512) as context:
        after = chunks.eval_chunks(see.mtmd, context)
        assert after == chunks.total_positions
        assert decoded(context) == after - 1
        expected = context.get_logits_ith(-1).copy()
        spread = expected.std()
        context.kv_cache_clear()
        assert chunks.eval_chunks(see.mtmd, context, n_batch=7) == after
        # The same sums in another order; the picture's embeddings are the very same.
        np.testing.assert_allclose(context.get_logits_ith(-1), expected, atol=0.05 * spread)
        context.kv_cache_clear()
        assert chunks.eval_chunks(see.mtmd, context, n_past=0, logits_last=False) == after
        with pytest.raises(IndexError):
            context.get_logits_ith(-1)


def test_what_cannot_be_evaluated(seeing: SeeingMaker) -> None:
    see, other = seeing("gemma3"), seeing("idefics3")
    chunks = see.mtmd.tokenize(["a", see.bitmap(), "b"])
    with see.context() as context, other.context() as wrong:
        with pytest.raises(MtmdError, match="loaded for another model"):
            chunks.eval_chunks(see.mtmd, wrong)
        with pytest.raises(MtmdError, match="loaded for another model"):
            chunks.eval_chunks(other.mtmd, context)
        with pytest.raises(TypeError, match="it takes a Context"):
            chunks.eval_chunks(see.mtmd, see.model)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="it takes an MtmdContext"):
            chunks.eval_chunks(see.model, context)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="n_past is -1"):
            chunks.eval_chunks(see.mtmd, context, n_past=-1)
        with pytest.raises(ValueError, match="seq_id is 1"):
            chunks.eval_chunks(see.mtmd, context, seq_id=1)
        with pytest.raises(ValueError, match="n_batch is 0"):
            chunks.eval_chunks(see.mtmd, context, n_batch=0)
        last = see.mtmd.tokenize([see.bitmap()])[1:2]
        assert last[0].chunk_type == InputChunkType.IMAGE
    chunks.close()
    with see.context() as context, pytest.raises(ClosedError):
        chunks.eval_chunks(see.mtmd, context)


def test_a_picture_that_is_seen_at_once_has_to_fit_a_batch(seeing: SeeingMaker) -> None:
    see = seeing("gemma3")
    chunks = see.mtmd.tokenize(["a", see.bitmap(), "b"])
    assert see.mtmd.decode_use_non_causal(chunks[1])
    with see.context(n_batch=3, n_ubatch=3) as context:
        with pytest.raises(BatchError, match=r"4 tokens, .* takes 3 .* ContextParams\(n_batch=4, n_ubatch=4\)"):
            chunks.eval_chunks(see.mtmd, context)
        assert context.causal_attn
