"""Texts that are cut to fit: the end token stays, and so does what a pair has behind its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bounds
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CPU, EXACT
from moebind import Model, PoolingType
from moebind.model.embedding import _Row

ROOM = 16
PARAMS = EXACT.with_n_ubatch(ROOM)
LONG = "the a of to and in it is was on " * 5
PLAIN = tiny._metadata


def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tiny.Shape, **more: object) -> Model:
    """A tiny model whose file says more."""
    monkeypatch.setattr(tiny, "_metadata", lambda of: PLAIN(of) | more)
    return Model.load_from_file(tiny.write(tmp_path / "model.gguf", shape), CPU)


LAST: dict[str, object] = {"llama.pooling_type": 3, "tokenizer.ggml.add_bos_token": False}
SHAPES = {
    "last, with an end token": (tiny.Shape(), {**LAST, "tokenizer.ggml.add_eos_token": True}),
    "last, without": (tiny.Shape(), {**LAST, "tokenizer.ggml.add_eos_token": False}),
    "bert": (tiny.Shape(arch="bert", n_head_kv=4), {}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_end_token_stays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, more = SHAPES[name]
    with load(tmp_path, monkeypatch, shape, **more) as model:
        tokens = model.str_to_token(LONG)
        ended = tokens[-1] == model.token_eos
        assert ended == (name != "last, without")
        kept = [*tokens[: ROOM - 1], tokens[-1]] if ended else tokens[:ROOM]
        expected = model.embed([kept], context_params=PARAMS)
        for given_as in (LONG, [LONG], [tokens]):
            got = model.embed(given_as, truncate=True, context_params=PARAMS)
            np.testing.assert_allclose(got, expected, rtol=0, atol=bounds.GELU)
        # What has no end is only cut.
        bare = model.str_to_token(LONG, add_special=False)
        got = model.embed([bare], truncate=True, context_params=PARAMS)
        np.testing.assert_allclose(got, model.embed([bare[:ROOM]], context_params=PARAMS), rtol=0, atol=bounds.GELU)


RERANK = {"tokenizer.chat_template.rerank": "<s>{query}: {document} so it is</s>"}


@pytest.mark.parametrize("more", [{}, RERANK])
def test_the_text_of_a_pair_is_cut(more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = tiny.Shape(arch="bert", n_head_kv=4, n_cls_out=1)
    with load(tmp_path, monkeypatch, shape, **more) as model:
        query = "it is the"

        def plain(text: str) -> list[int]:
            return model.str_to_token(text, add_special=False).tolist()

        if more:
            head, tail = plain(f"<s>{query}: "), plain(" so it is</s>")
        else:
            bos, eos = model.token_bos, model.token_eos
            head, tail = [bos, *plain(query), eos], [eos]
        whole = model._pair(query, LONG).tokens.tolist()
        assert whole[-len(tail) :] == tail
        kept = [*whole[: 40 - len(tail)], *tail]
        expected = model.embed([kept], pooling_type=PoolingType.MEAN, context_params=PARAMS.with_n_ubatch(40))
        got = model._pair(query, LONG).cut(40)
        assert got.tolist() == kept
        scores = model.rerank(query, [LONG, "a"], truncate=True, context_params=PARAMS.with_n_ubatch(40))
        whole_text = model.rerank(query, ["a"], context_params=PARAMS.with_n_ubatch(40))
        np.testing.assert_allclose(scores[1:], whole_text, rtol=0, atol=bounds.GELU)
        assert np.isfinite(expected).all()
        assert len(head) + len(tail) < 40


def test_a_query_that_leaves_no_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = tiny.Shape(arch="bert", n_head_kv=4, n_cls_out=1)
    with (
        load(tmp_path, monkeypatch, shape) as model,
        pytest.raises(ValueError, match=r"texts\[0\] would be cut off whole: the query and .* take \d+ of 16 tokens"),
    ):
        model.rerank(LONG[:40], ["the a of to and"], truncate=True, context_params=PARAMS)


@settings(max_examples=200)
@given(n=st.integers(1, 30), tail=st.integers(0, 30), room=st.integers(1, 30))
def test_a_row_never_has_more_than_there_is_room_for(n: int, tail: int, room: int) -> None:
    tail = min(tail, n)
    got = _Row(np.arange(n, dtype=np.int32), 0, tail).cut(room).tolist()
    assert len(got) == min(n, room)
    end = min(tail, room)
    assert got[len(got) - end :] == list(range(n - end, n))
    assert got[: len(got) - end] == list(range(len(got) - end))
