"""What every part of a context may ask of the whole: whose a sequence is, and what libllama made of its parameters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conftest import SMALL
from moebind import Batch, ClosedError, Context, ContextParams, Model, PoolingType


@pytest.fixture
def several(moe: Model) -> Iterator[Context]:
    with moe.new_context(SMALL.with_n_seq_max(3).with_n_ctx(768)) as context:
        yield context


def test_numbers_of_sequences(several: Context) -> None:
    assert [several._seq("seq_id", seq) for seq in range(3)] == [0, 1, 2]
    assert several._seq("seq_id", -1, low=-1) == -1
    for wrong in (-1, 3, 255, 2**31):
        with pytest.raises(ValueError, match=rf"^seq_id is {wrong}; it takes 0 to 2$"):
            several._seq("seq_id", wrong)
    for kind in ("0", None, 1.0, True):
        with pytest.raises(TypeError, match="seq_id"):
            several._seq("seq_id", kind)  # type: ignore[arg-type]


def test_a_sequence_belongs_to_the_last_that_took_it_over(several: Context) -> None:
    first = several._take_over([0, 1])
    several._must_own(0, first)
    second = several._take_over([1])
    assert second > first
    several._must_own(0, first)
    several._must_own(1, second)
    with pytest.raises(ClosedError, match="another call to generate took over sequence 1 of this context"):
        several._must_own(1, first)


def test_a_change_ends_what_a_sequence_was_used_for(several: Context) -> None:
    generation = several._take_over(range(3))
    several._history[1] = [1, 2]
    several._changes([1])
    assert 1 not in several._history
    with pytest.raises(ClosedError, match="another call changed sequence 1 of this context"):
        several._must_own(1, generation)
    several._must_own(0, generation)
    several._must_own(2, generation)


def test_what_libllama_made_of_its_parameters(moe: Model) -> None:
    with moe.new_context(ContextParams(n_ctx=300, n_seq_max=2, n_batch=40, n_ubatch=99, n_threads=2)) as context:
        assert (context.n_ctx, context.n_ctx_seq, context.n_seq_max) == (512, 256, 2)
        assert (context.n_batch, context.n_ubatch, context.n_rs_seq) == (40, 40, 0)
        assert (context.n_threads, context.n_threads_batch) == (2, ContextParams().n_threads_batch)
        assert context.pooling_type is PoolingType.NONE
        assert context.causal_attn is True
        context.set_causal_attn(False)
        assert context.causal_attn is False


@pytest.mark.parametrize("name", ["n_ctx", "n_ctx_seq", "n_batch", "n_ubatch", "n_rs_seq", "n_threads", "pooling_type"])
def test_a_closed_context_knows_nothing(moe: Model, name: str) -> None:
    context = moe.new_context(SMALL)
    context.decode(Batch.get_one([1]))
    context.close()
    with pytest.raises(ClosedError):
        getattr(context, name)
