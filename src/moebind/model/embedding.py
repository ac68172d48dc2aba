"""Embeddings and scores of texts: the part of ``Model`` that makes rows of tokens of them, to be pooled."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from moebind._core import checks
from moebind._core.native import decoded, lib
from moebind._core.shown import shown
from moebind.enums import PoolingType
from moebind.errors import EmbeddingsError
from moebind.model.hyperparameters import Hyperparameters
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ContextParams

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Embedding"]

T = TypeVar("T")

#: How many texts are computed at once, unless ``context_params`` says it.
N_SEQ_MAX = 16
#: How long a text may be, unless ``context_params`` says it: computing it at once takes memory.
N_TOKENS_MAX = 2048
#: Names of other libraries for arguments of these calls.
_ELSEWHERE = {
    "normalize_embeddings": "normalize",
    "pooling": "pooling_type",
    "input": "texts",
    "sentences": "texts",
    "documents": "texts",
}


class _Row(NamedTuple):
    """Tokens of a text or a pair, and how many of them at the beginning and at the end are not the text's."""

    tokens: NDArray[np.int32]
    head: int
    tail: int

    def cut(self, room: int) -> NDArray[np.int32]:
        """As many as there is room for."""
        if self.tokens.size <= room:
            return self.tokens
        tail = min(self.tail, room)
        return np.concatenate([self.tokens[: room - tail], self.tokens[self.tokens.size - tail :]])


class Embedding(Hyperparameters, metaclass=ABCMeta):
    """The part of a model that embeds and ranks whole texts. :class:`moebind.Model` has it."""

    @abstractmethod
    def _compute_pooled(
        self, params: ContextParams, rows: Sequence[NDArray[np.int32]], result: NDArray[np.float32]
    ) -> None:
        """Compute the pooled embedding of each row of tokens into ``result``, in a context that is made for it."""

    @explained_with_fields(context="model.embed(texts, context_params={})", other_names=_ELSEWHERE)
    def embed(
        self,
        texts: str | Sequence[str | ArrayLike],
        *,
        normalize: bool = False,
        pooling_type: PoolingType | int = PoolingType.UNSPECIFIED,
        truncate: bool = False,
        context_params: ContextParams | None = None,
    ) -> NDArray[np.float32]:
        """Compute the embeddings of texts.

        Parameters
        ----------
        texts
            Any number of texts, or arrays of token ids; a single str is one text.
        normalize
            Scale each embedding to length 1, so that dot products are cosines.
        pooling_type
            How a text's token embeddings become one: MEAN, CLS (the first) or LAST. By default as the model's file
            says, or MEAN if it says nothing.
        truncate
            Cut texts that are too long, instead of refusing them. The token with which the tokenizer ends a text is
            kept.
        context_params
            How to compute: threads and, as ``n_ubatch``, how many tokens a text may have. By default, also where only
            other fields are set, that is as many as the model was trained with, up to 2048, and several texts at once.

        Returns
        -------
        numpy.ndarray
            float32, ``(n, n_embd_out)``, rows in the order of the texts.

        Raises
        ------
        ValueError
            If a text has no tokens, or is too long; the message says which one.
        EmbeddingsError
            If the pooling type gives no embedding of a text (NONE, RANK).

        Notes
        -----
        Makes a context, decodes as many texts per batch as fit, and reads ``llama_get_embeddings_seq``. For many calls,
        use a context of your own and ``Context.embeddings_seq_ith``.

        Examples
        --------
        >>> vectors = model.embed(["a cat", "a dog", "a theorem"], normalize=True)
        >>> vectors @ vectors.T
        """
        pooling = checks.member("pooling_type", pooling_type, PoolingType)
        scaled = checks.boolean("normalize", normalize)
        cut = checks.boolean("truncate", truncate)
        if pooling in {PoolingType.NONE, PoolingType.RANK}:
            raise EmbeddingsError(f"pooling_type is {pooling.name}; a text's embedding takes MEAN, CLS or LAST")
        if pooling == PoolingType.UNSPECIFIED and self._own_pooling() in {PoolingType.UNSPECIFIED, PoolingType.NONE}:
            pooling = PoolingType.MEAN
        elif pooling == PoolingType.UNSPECIFIED and self._own_pooling() == PoolingType.RANK:
            raise EmbeddingsError("this model scores texts (rerank); say how to pool embeddings with pooling_type")
        end = self._end_tokens() if cut else np.empty(0, np.int32)
        rows = [
            _Row(tokens, 0, end.size if end.size and tokens[-end.size :].tolist() == end.tolist() else 0)
            for tokens in (self._text_tokens(at, text) for at, text in enumerate(_listed_texts("texts", texts)))
        ]
        result = np.empty((len(rows), self.n_embd_out), np.float32)
        self._pooled(rows, pooling, cut, context_params, result)
        if scaled:
            lengths = np.linalg.norm(result, axis=1, keepdims=True)
            np.divide(result, lengths, out=result, where=lengths > 0)
        return result

    @explained_with_fields(context="model.rerank(query, texts, context_params={})", other_names=_ELSEWHERE)
    def rerank(
        self,
        query: str,
        texts: str | Sequence[str],
        *,
        truncate: bool = False,
        context_params: ContextParams | None = None,
    ) -> NDArray[np.float32]:
        """Score how well texts answer a query, with a model that has a classification head.

        Parameters
        ----------
        query
            The question.
        texts
            Any number of texts; a single str is one text.
        truncate
            Cut the texts of pairs that are too long, instead of refusing them. What comes behind a text is kept.
        context_params
            As for :meth:`embed`.

        Returns
        -------
        numpy.ndarray
            float32, ``(n,)``: higher is better. What the numbers mean depends on the model. If the head gives several
            scores, this is the first.

        Raises
        ------
        ValueError
            If a pair is too long, or its query leaves no room for a text; the message says which one.
        EmbeddingsError
            If the model has no classification head.

        Notes
        -----
        Pairs are put together as in llama-server: with the model's ``rerank`` template, or else as beginning, query,
        end, separator, text, end, as far as the vocabulary has these tokens. The score is ``llama_get_embeddings_seq``
        with ``PoolingType.RANK``.

        Examples
        --------
        >>> scores = model.rerank("How do I exit?", ["Press q.", "It rains."])
        >>> scores.argsort()[::-1]
        """
        checks.utf8("query", query)
        cut = checks.boolean("truncate", truncate)
        n_scores = int(lib.moebind_model_n_scores(self._open()))
        if not n_scores:
            raise EmbeddingsError("this model has no classification head to score texts with: rerankers have one")
        listed = _listed_texts("texts", texts)
        for at, text in enumerate(listed):
            checks.utf8(f"texts[{at}]", text)
        pairs = [self._pair(query, text) for text in listed]
        result = np.empty((len(pairs), max(1, int(lib.llama_model_n_cls_out(self._open())))), np.float32)
        self._pooled(pairs, PoolingType.RANK, cut, context_params, result)
        return np.ascontiguousarray(result[:, 0])

    def _text_tokens(self, at: int, text: str | ArrayLike) -> NDArray[np.int32]:
        if isinstance(text, str):
            tokens = self.str_to_token(text)
        elif not isinstance(text, (Sequence, np.ndarray)) or isinstance(text, bytes):
            raise TypeError(f"texts[{at}] is {shown(text)} ({type(text).__name__}); it takes a str, or token ids")
        else:
            tokens = checks.int32_array(f"texts[{at}]", text, 0, self.n_vocab - 1)
        if not tokens.size:
            raise ValueError(f"texts[{at}] has no tokens; it takes at least one")
        return tokens

    def _end_tokens(self) -> NDArray[np.int32]:
        """What the tokenizer puts behind a text."""
        alone, whole = self.str_to_token("a", add_special=False), self.str_to_token("a")
        for begin in range(whole.size - alone.size + 1):
            if whole[begin : begin + alone.size].tolist() == alone.tolist():
                return whole[begin + alone.size :]
        return whole[whole.size :]

    def _pair(self, query: str, text: str) -> _Row:
        """A query and a text, as llama-server puts them together."""
        template = lib.llama_model_chat_template(self._open(), b"rerank")
        if template:
            # One after the other would replace what the query says in braces.
            head, _, tail = decoded(template).rpartition("{document}")
            head, tail = (
                query.join(part.replace("{document}", text) for part in side.split("{query}")) for side in (head, tail)
            )
            whole, before, behind = (
                self.str_to_token(each, add_special=False) for each in (head + text + tail, head, tail)
            )
            alike = whole[::-1][: behind.size] == behind[::-1][: whole.size]
            return _Row(whole, before.size, alike.size if alike.all() else int(alike.argmin()))
        vocab = self._usable_vocab()
        eos = self.token_sep if self.token_eos is None else self.token_eos
        end = [] if eos is None or not lib.llama_vocab_get_add_eos(vocab) else [eos]
        begin = [self.token_bos] if lib.llama_vocab_get_add_bos(vocab) else []
        between = [self.token_sep] if lib.llama_vocab_get_add_sep(vocab) else []
        query_tokens, text_tokens = (
            self.str_to_token(each, add_special=False, parse_special=False) for each in (query, text)
        )
        joined = [*begin, *query_tokens.tolist(), *end, *between, *text_tokens.tolist(), *end]
        tokens = np.array([token for token in joined if token is not None], np.int32)
        if not tokens.size:
            raise ValueError("query and text are empty; a pair takes at least one token")
        return _Row(tokens, tokens.size - text_tokens.size - len(end), len(end))

    def _pooled(
        self,
        rows: list[_Row],
        pooling: PoolingType,
        cut: bool,
        params: ContextParams | None,
        result: NDArray[np.float32],
    ) -> None:
        """Compute the pooled embedding of each row into ``result``."""
        if params is not None and not isinstance(params, ContextParams):
            raise TypeError(f"context_params is {shown(params)}; it takes ContextParams")
        if not rows:
            return
        longest = max(row.tokens.size for row in rows)
        default = ContextParams()
        params = params or default
        if params.n_ubatch == default.n_ubatch:
            most = min(self.n_ctx_train or N_TOKENS_MAX, N_TOKENS_MAX)
            params = params.with_n_ubatch(min(most, max(longest, default.n_ubatch)))
        if params.n_seq_max == default.n_seq_max:
            params = params.with_n_seq_max(min(N_SEQ_MAX, len(rows)))
        # Tokens that are pooled must be computed at once, and a model may have embeddings for so many positions only.
        room = min(params.n_ubatch, int(lib.moebind_model_n_pos(self._open())) or params.n_ubatch)
        for at, row in enumerate(rows):
            if row.tokens.size > room and not cut:
                raise ValueError(
                    f"texts[{at}] has {row.tokens.size} tokens; at most {room} are taken: cut it with truncate=True, "
                    "or raise n_ubatch in context_params, as far as the model goes"
                )
            if row.tokens.size > room and row.head and row.head + row.tail >= room:
                raise ValueError(
                    f"texts[{at}] would be cut off whole: the query and what belongs to it take {row.head + row.tail} "
                    f"of {room} tokens. Shorten it, or raise n_ubatch in context_params, as far as the model goes"
                )
        size = -(-params.n_ubatch // params.n_seq_max) * params.n_seq_max
        chosen = params._with(
            n_ctx=max(params.n_ctx, size),
            n_batch=size,
            n_ubatch=size,
            n_outputs_max=0,
            kv_unified=True,
            embeddings=True,
            pooling_type=pooling,
        )
        self._compute_pooled(chosen, [row.cut(room) for row in rows], result)


def _listed_texts(name: str, texts: str | Sequence[T]) -> Sequence[T | str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, dict)) or not isinstance(texts, (Sequence, np.ndarray)):
        raise TypeError(f"{name} is {shown(texts)}; it takes a list of texts")
    return texts
