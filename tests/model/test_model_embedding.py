"""Embeddings and scores of texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bounds
import numpy as np
import pytest
import tiny  # put on the path by conftest.py
from pooled import APART, EMBEDDING, POOLED, pooled, rewritten

from conftest import CPU
from moebind import ClosedError, ContextParams, EmbeddingsError, Model, PoolingType


def test_rerank_takes_the_models_template(tmp_path: Path) -> None:
    shape = tiny.Shape(arch="bert", n_head_kv=4, n_ctx_train=64, n_cls_out=1)
    told = {"tokenizer__chat_template__rerank": "<s>{query}: {document}</s>"}
    with Model.load_from_file(rewritten(tmp_path / "model.gguf", shape, **told), CPU) as model:
        # What is said in braces stays as it is.
        pair = model.str_to_token("<s>it {document}: {query} is</s>", add_special=False)
        expected = pooled(model, PoolingType.RANK, [pair.tolist()])[0]
        np.testing.assert_allclose(
            model.rerank("it {document}", "{query} is", context_params=EMBEDDING), expected, atol=bounds.GELU
        )


def test_rerank_puts_pairs_together_as_llama_server_does(ranker: Model) -> None:
    query, texts = "the cat", ["it is", "a", "of the to"]
    bos, eos = ranker.token_bos, ranker.token_eos

    def plain(text: str) -> list[int]:
        return ranker.str_to_token(text, add_special=False).tolist()

    pairs = [[bos, *plain(query), eos, *plain(text), eos] for text in texts]
    expected = [score[0] for score in pooled(ranker, PoolingType.RANK, pairs)]
    scores = ranker.rerank(query, texts, context_params=EMBEDDING)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=bounds.GELU)
    np.testing.assert_allclose(ranker.rerank(query, texts[0], context_params=EMBEDDING), expected[:1], atol=bounds.GELU)
    assert np.ptp(expected) > 10 * bounds.GELU  # or any order would do
    assert ranker.rerank(query, []).shape == (0,)


@pytest.mark.parametrize("name", list(APART))
@pytest.mark.parametrize("pooling", POOLED)
def test_embed_is_the_pooled_embedding(name: str, pooling: PoolingType, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    texts = ["the cat", "it", "was on the a of " * 3]
    expected = pooled(model, pooling, [model.str_to_token(text).tolist() for text in texts])
    exact = EMBEDDING.with_n_seq_max(2)  # two batches
    got = model.embed(texts, pooling_type=pooling, context_params=exact)
    assert got.shape == (3, model.n_embd_out)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=APART[name])
    unit = model.embed(texts, pooling_type=pooling, normalize=True, context_params=exact)
    # A sum of squares and a division, in F32.
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(unit, got / np.linalg.norm(got, axis=1, keepdims=True), atol=1e-5)


def test_embed_means_by_default(dense: Model) -> None:
    expected = dense.embed("the cat", pooling_type=PoolingType.MEAN)
    np.testing.assert_array_equal(dense.embed("the cat"), expected)
    np.testing.assert_array_equal(dense.embed([dense.str_to_token("the cat")]), expected)


def test_parameters_that_say_nothing_of_lengths_cut_nothing(
    tiny_path: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ContextParams] = []
    make = Model.new_context
    monkeypatch.setattr(Model, "new_context", lambda self, params: (made.append(params), make(self, params))[1])
    long = np.arange(600) % 200 + 5
    params = ContextParams(n_threads=1, n_threads_batch=1)
    with Model.load_from_file(tiny_path(n_ctx_train=700), CPU) as model:
        chosen = model.embed([long, long[:3]], context_params=params)
        assert (made[-1].n_ubatch, made[-1].n_seq_max, made[-1].n_threads) == (600, 2, 1)
        asked = model.embed([long, long[:3]], context_params=params.with_n_ubatch(600).with_n_seq_max(2))
        np.testing.assert_array_equal(chosen, asked)
        with pytest.raises(ValueError, match="at most 599 are taken"):
            model.embed([long], context_params=params.with_n_ubatch(599))
        with pytest.raises(ValueError, match="at most 700 are taken"):
            model.embed([np.tile(long, 2)], context_params=params)


def test_long_texts_are_named_or_cut(bert: Model) -> None:
    texts = ["a", "the " * 100]
    with pytest.raises(ValueError, match=r"texts\[1\] has \d+ tokens; at most 64"):
        bert.embed(texts)
    cut = bert.embed(texts, truncate=True, context_params=EMBEDDING)
    tokens = bert.str_to_token(texts[1])
    expected = bert.embed([[*tokens[:63], tokens[-1]]], context_params=EMBEDDING)
    np.testing.assert_allclose(cut[1], expected[0], atol=bounds.GELU)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"texts": 3}, TypeError, "list of texts"),
        ({"texts": b"a"}, TypeError, "list of texts"),
        ({"texts": {"a": 1}}, TypeError, "list of texts"),
        ({"texts": [3.5]}, TypeError, r"texts\[0\] is 3.5 \(float\); it takes a str, or token ids"),
        ({"texts": ["a", None]}, TypeError, r"texts\[1\] is None \(NoneType\); it takes a str, or token ids"),
        ({"texts": [b"a"]}, TypeError, r"texts\[0\] is b'a'"),
        ({"texts": ["a", []]}, ValueError, r"texts\[1\] has no tokens"),
        ({"texts": [[-1]]}, ValueError, r"texts\[0\]\[0\] is -1"),
        ({"texts": [[10**6]]}, ValueError, r"texts\[0\]\[0\] is 1000000"),
        ({"texts": [np.array([1.5])]}, TypeError, "integers"),
        ({"texts": ["\ud800"]}, ValueError, "surrogate"),
        ({"normalize": 1}, TypeError, "normalize"),
        ({"truncate": None}, TypeError, "truncate"),
        ({"pooling_type": PoolingType.NONE}, EmbeddingsError, "NONE"),
        ({"pooling_type": PoolingType.RANK}, EmbeddingsError, "RANK"),
        ({"pooling_type": 17}, ValueError, "pooling_type"),
        ({"pooling_type": "mean"}, TypeError, "pooling_type"),
        ({"context_params": 3}, TypeError, "ContextParams"),
    ],
)
def test_bad_arguments_of_embed(bert: Model, options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bert.embed(**{"texts": ["a"], **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "texts", "error", "message"),
    [
        (3, ["a"], TypeError, "query"),
        ("\ud800", ["a"], ValueError, "surrogate"),
        ("a", ["b", 3], TypeError, r"texts\[1\] is 3 \(int\); it takes a str"),
        ("a", [None], TypeError, r"texts\[0\] is None"),
        ("a", ["\udfff"], ValueError, "surrogate"),
        ("a", None, TypeError, "list of texts"),
        ("a", ["b", "the " * 100], ValueError, r"texts\[1\] has"),
    ],
)
def test_bad_arguments_of_rerank(
    ranker: Model, query: object, texts: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ranker.rerank(query, texts)  # type: ignore[arg-type]


def test_closed_models(tiny_path: Callable[..., Path]) -> None:
    model = Model.load_from_file(tiny_path(), CPU)
    model.close()
    with pytest.raises(ClosedError):
        model.embed("a")
    with pytest.raises(ClosedError):
        model.rerank("a", "b")
