"""Texts that are written with drafts, and without: how fast they are, and what they are.

Drafts are right as often as the text can be foreseen, so that random tokens, or one sentence again and again, would say
nothing. What is written follows the prompts on which results are compared, which may be the user's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moebind.bench.measure import Captured
from moebind.context.context import Context
from moebind.errors import MoebindError
from moebind.sampling.sampler import Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind.context.speculative import Speculative

__all__ = ["continued", "timed_texts"]

#: Tokens that are written after each prompt at least, if so many are to be written at all.
LENGTH = 16
#: Tokens of a text before those that are timed.
WARM_UP = 4


def endless(context: Context) -> Sampler:
    """The likeliest token that does not end a text."""
    model = context.model
    ends = {token: -math.inf for token in range(model.n_vocab) if model.is_eog_token(token)}
    return Sampler.chain([Sampler.logit_bias(ends), Sampler.greedy()])


def timed_texts(
    context: Context, text: str, n_prompt: int, prompts: Sequence[str], n_generate: int, speculative: Speculative | None
) -> tuple[float, float]:
    """Tokens a second of a prompt, whose tokens a draft computes, too; and of texts, after the first token of each.

    As many tokens are written as in a run without texts, or a little more, in equal parts after each of the prompts; as
    many side by side as the context has sequences.
    """
    model, sampler = context.model, endless(context)
    write = partial(context.generate, sampler=sampler, reuse_prefix=False, speculative=speculative)
    # A draft reads its weights for the first time: not in a text that is timed.
    write(model.str_to_token(text)[: min(LENGTH, n_prompt)], max_tokens=WARM_UP).complete()
    start = time.perf_counter()
    write(model.str_to_token(text)[:n_prompt], max_tokens=1).complete()
    prompt_speed = n_prompt / (time.perf_counter() - start)
    n_each = min(n_generate, max(LENGTH, -(-n_generate // len(prompts))))
    room = context.n_ctx_seq - n_each - 1
    starts = [model.str_to_token(each)[:room] for each in prompts]
    if context.n_seq_max > 1:
        return prompt_speed, _side_by_side(context, starts, n_each, sampler, speculative)
    seconds = 0.0
    for tokens in starts:
        pieces = write(tokens, max_tokens=n_each + 1)
        next(pieces)
        begun = time.perf_counter()
        count = sum(1 for _ in pieces)
        seconds += time.perf_counter() - begun
        _check(count, n_each)
    return prompt_speed, len(starts) * n_each / seconds


def _side_by_side(
    context: Context,
    starts: Sequence[NDArray[np.int32]],
    n_each: int,
    sampler: Sampler,
    speculative: Speculative | None,
) -> float:
    """From when all have their first token: until then, some prompts are computed."""
    n = context.n_seq_max
    tokens = [starts[at % len(starts)] for at in range(n)]
    times, begun = list[float](), dict[int, float]()
    pieces = context.generate_many(tokens, sampler=sampler, max_tokens=n_each + 1, speculative=speculative)
    for index, _ in pieces:
        times.append(time.perf_counter())
        begun.setdefault(index, times[-1])
    _check(len(times), n * (n_each + 1))
    first = max(begun.values())
    return sum(each > first for each in times) / (times[-1] - first)


def _check(found: int, wanted: int) -> None:
    if found != wanted:
        raise MoebindError(f"{found} tokens were written instead of {wanted}: the context is too short for the prompts")


def continued(
    context: Context, prompts: Sequence[str], captured: Captured, speculative: Speculative
) -> NDArray[np.int32]:
    """Greedy continuations, as they are with drafts; behind the end of a text, what was captured without."""
    greedy = np.array(captured.greedy, np.int32)
    n = greedy.shape[1]
    for row, prompt in enumerate(prompts):
        tokens = context.model.str_to_token(prompt)[: context.n_ctx_seq - n]
        pieces = context.generate(
            tokens, sampler=Sampler.greedy(), max_tokens=n, reuse_prefix=False, speculative=speculative
        )
        written = pieces.complete().tokens
        greedy[row, : len(written)] = written
    return greedy
