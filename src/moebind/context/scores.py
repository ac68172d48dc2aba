"""How likely the chosen token was, and which others were: for whoever asks for ``logprobs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.shown import shown
from moebind.context.pieces import TokenLogprob

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind.model.vocab import Vocabulary

__all__ = ["Score", "checked_logprobs", "score"]


class Score(NamedTuple):
    """The logarithm of a token's probability, and the likeliest tokens in its place."""

    logprob: float
    top: tuple[TokenLogprob, ...]


def checked_logprobs(logprobs: bool | SupportsIndex | None, n_vocab: int) -> int | None:
    """``logprobs`` of everything that generates: how many of the likeliest tokens; None: no probabilities at all."""
    if logprobs is None or isinstance(logprobs, (bool, np.bool_)):
        return 0 if logprobs else None
    if not isinstance(logprobs, SupportsIndex):
        raise TypeError(f"logprobs is {shown(logprobs)} ({type(logprobs).__name__}); it takes True, False, or a number")
    count = checks.integer("logprobs", logprobs, -checks.INT32_MAX)
    if not 1 <= count <= n_vocab:
        raise ValueError(
            f"logprobs is {count}; it takes True, for the probability of the chosen token, or how many of the likeliest"
            f" tokens to tell besides: 1 to {n_vocab}"
        )
    return count


def score(model: Vocabulary, logits: NDArray[np.float32], token: int, n_top: int) -> Score:
    """How likely a token is, by these logits, and the ``n_top`` likeliest ones."""
    highest = logits.max()
    # Sums of a vocabulary's many small numbers lose digits in float32.
    total = float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    top: tuple[TokenLogprob, ...] = ()
    if n_top:
        likely = np.argpartition(logits, -n_top)[-n_top:]
        likely = likely[np.lexsort((likely, -logits[likely]))]
        top = tuple(
            TokenLogprob(each, model.token_to_str(each, special=True), float(logits[each]) - total)
            for each in likely.tolist()
        )
    return Score(float(logits[token]) - total, top)
