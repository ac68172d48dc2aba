"""How likely tokens are after others, for many rows at once; what rows begin with alike is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from moebind.context.batch import Batch
from moebind.context.context import Context
from moebind.context.scores import score

__all__ = ["Row", "RowScore", "score_rows"]


class Row(NamedTuple):
    """Tokens that are given, at least one, and tokens after them that are scored."""

    given: tuple[int, ...]
    scored: tuple[int, ...]

    @property
    def computed(self) -> tuple[int, ...]:
        """The tokens that are computed: after the last one, nothing is asked for."""
        return (self.given + self.scored)[:-1]


class RowScore(NamedTuple):
    """The logarithm of the probability of what was scored, and whether each of its tokens was the likeliest."""

    logprob: float
    is_greedy: bool


@dataclass
class _Token:
    """A token of one or more rows, which are the same up to it."""

    id: int
    pos: int
    sequences: list[int]
    #: The rows that ask what follows, and which token they mean.
    asked: list[tuple[int, int]] = field(default_factory=list)


def score_rows(context: Context, rows: Sequence[Row]) -> Iterator[tuple[int, RowScore]]:
    """Score rows, in an order of their own.

    Parameters
    ----------
    context
        Emptied before and after. So many rows are computed together as it has sequences, and room in its cache; they
        share tokens if that is one for all sequences (``kv_unified``).
    rows
        None longer than a sequence of the context, and one token.

    Yields
    ------
    tuple[int, RowScore]
        The row's index, and its score.
    """
    order = sorted(range(len(rows)), key=lambda each: rows[each].computed)
    for together in _packs(context, rows, order):
        logprobs, greedy = dict.fromkeys(together, 0.0), dict.fromkeys(together, True)
        for tokens in _chunks(_tree(rows, together, _shares(context)), context.n_batch):
            for (row, wanted), logits in _asked(context, tokens):
                logprobs[row] += score(context.model, logits, wanted, 0).logprob
                greedy[row] &= int(logits.argmax()) == wanted
        context.kv_cache_clear(data=False)
        for row in together:
            yield row, RowScore(logprobs[row], greedy[row])


def _shares(context: Context) -> bool:
    """Whether a token can belong to several sequences: states of recurrent models cannot, nor caches apart."""
    model = context.model
    return context.n_ctx_seq == context.n_ctx and not model.is_recurrent and not model.is_hybrid


def _packs(context: Context, rows: Sequence[Row], order: Sequence[int]) -> Iterator[list[int]]:
    """Rows that are computed together: as many as there are sequences, and room for their tokens."""
    shares, room = _shares(context), context.n_ctx
    pack: list[int] = []
    size = 0
    for row in order:
        tokens = rows[row].computed
        common = _common(rows[pack[-1]].computed, tokens) if pack and shares else 0
        if pack and (len(pack) == context.n_seq_max or size + len(tokens) - common > room):
            yield pack
            pack, size, common = [], 0, 0
        pack.append(row)
        size += len(tokens) - common
    if pack:
        yield pack


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    n = min(len(a), len(b))
    return next((at for at in range(n) if a[at] != b[at]), n)


def _tree(rows: Sequence[Row], pack: Sequence[int], shares: bool) -> list[_Token]:
    """The tokens of rows in the order of their tokens, those that they have in common once."""
    tokens: list[_Token] = []
    path: list[_Token] = []
    for seq, row in enumerate(pack):
        ids = rows[row].computed
        n = _common([each.id for each in path], ids) if shares else 0
        path = path[:n]
        for each in path:
            each.sequences.append(seq)
        for pos in range(n, len(ids)):
            path.append(_Token(ids[pos], pos, [seq]))
            tokens.append(path[-1])
        first = len(rows[row].given) - 1
        for at, wanted in enumerate(rows[row].scored):
            path[first + at].asked.append((row, wanted))
    return tokens


def _chunks(tokens: Sequence[_Token], n_batch: int) -> Iterator[Sequence[_Token]]:
    for start in range(0, len(tokens), n_batch):
        yield tokens[start : start + n_batch]


def _asked(context: Context, tokens: Sequence[_Token]) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Compute tokens; what is asked after each of them, and the logits there."""
    batch = Batch(len(tokens), context.n_seq_max)
    for each in tokens:
        batch.add(each.id, each.pos, each.sequences, bool(each.asked))
    context.decode(batch)
    for at, each in enumerate(tokens):
        for asked in each.asked:
            yield asked, context.get_logits_ith(at)
