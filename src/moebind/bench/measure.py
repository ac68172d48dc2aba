"""Measurements of one placement, in a process that does nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.shown import shown
from moebind.context.batch import Batch
from moebind.context.context import Context
from moebind.errors import MoebindError
from moebind.model.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "LOGITS_MAX",
    "BatchRun",
    "Captured",
    "TimedRun",
    "capture",
    "check_room",
    "prompt_text",
    "timed_batch",
    "timed_run",
]

#: Bytes of logits that a placement keeps.
LOGITS_MAX = 64 * 2**20
#: Nothing is less likely than this; float16 holds it.
FLOOR = -6e4
#: Tokens of each continuation, at most.
CONTINUED = 32


@dataclass(frozen=True)
class TimedRun:
    """One run: seconds, by the clock.

    Attributes
    ----------
    n_prompt, n_generate : int
        Tokens of the prompt, as the tokenizer made them, and tokens computed one at a time.
    prompt : float
        Seconds from the prompt's tokens to their logits.
    first_token : float
        Seconds from the prompt's text to the first token: tokenizer, prompt, choice.
    stamps : tuple[float, ...]
        Seconds from the prompt's text to each token, from the first one on.
    """

    n_prompt: int
    n_generate: int
    prompt: float
    first_token: float
    stamps: tuple[float, ...]

    @property
    def prompt_speed(self) -> float:
        """Tokens per second of the prompt."""
        return self.n_prompt / self.prompt

    @property
    def decode_speed(self) -> float:
        """Tokens per second after the first token."""
        return self.n_generate / (self.stamps[-1] - self.stamps[0])

    @property
    def intervals(self) -> tuple[float, ...]:
        """Seconds from each token to the next."""
        return tuple(after - before for before, after in zip(self.stamps, self.stamps[1:], strict=False))


@dataclass(frozen=True)
class BatchRun(TimedRun):
    """One run of several sequences side by side: speeds are of all together.

    Attributes
    ----------
    n_prompt, n_generate : int
        Tokens of each sequence's prompt, and tokens computed one at a time after it.
    prompt : float
        Seconds from the prompts' tokens to their logits, one prompt after the other.
    first_token : float
        Seconds from the prompts' text to the first token of each.
    stamps : tuple[float, ...]
        Seconds from the prompts' text to each step, which computes a token of each sequence.
    n_sequences : int
        How many sequences. Each has a prompt of its own.
    """

    n_sequences: int = 1

    @property
    def prompt_speed(self) -> float:
        """Tokens per second of the prompts."""
        return self.n_sequences * super().prompt_speed

    @property
    def decode_speed(self) -> float:
        """Tokens per second after the first token of each, one of each sequence at a time."""
        return self.n_sequences * super().decode_speed


@dataclass(frozen=True)
class Captured:
    """Logits and texts that a placement makes of the prompts.

    Attributes
    ----------
    logits : NDArray
        float16 ``(n_positions, n_vocab)``, each row less its largest: what is likely is near 0, where float16 is fine.
    top : NDArray
        int32 ``(n_positions,)``, the likeliest token of each.
    greedy : NDArray
        int32 ``(n_prompts, n_tokens)``, greedy continuations.
    """

    logits: NDArray[np.float16]
    top: NDArray[np.int32]
    greedy: NDArray[np.int32]


def check_room(model: Model, context: Context, n_tokens: int) -> None:
    """Whether this model can continue a text of so many tokens.

    Raises
    ------
    MoebindError
    """
    if not model.has_decoder or model.has_encoder or context._encodes:
        raise MoebindError("the model does not continue texts: it is an encoder, or needs one")
    if n_tokens > context.n_ctx_seq:
        raise MoebindError(
            f"n_prompt and n_generate are {n_tokens} tokens, and a sequence has room for {context.n_ctx_seq}: make "
            "n_ctx larger"
        )


def prompt_text(model: Model, text: str, n_tokens: int) -> str:
    """So many repetitions of ``text`` that the tokenizer makes ``n_tokens`` tokens or a few more of it."""
    repeated = text
    while (found := model.str_to_token(repeated).size) < n_tokens:
        repeated += repeated
    # What is left over would be tokenised again and again, within the time that is measured.
    short = repeated[: 1 + int(1.1 * len(repeated) * n_tokens / found)]
    return short if model.str_to_token(short).size >= n_tokens else repeated


def timed_run(model: Model, context: Context, text: str, n_prompt: int, n_generate: int) -> TimedRun:
    """A prompt, and greedy tokens after it; those that end a text do not end it, as in llama-bench."""
    context.kv_cache_clear(data=False)
    start = time.perf_counter()
    tokens = model.str_to_token(text)[:n_prompt]
    batches = _batches(tokens, context.n_batch)
    begun = time.perf_counter()
    for batch in batches:
        context.decode(batch)
    context.synchronize()
    computed = time.perf_counter()
    token = _likeliest(context)
    stamps = [time.perf_counter()]
    step = Batch(1)
    step.extend([0], 0, 0, True)
    for position in range(n_prompt, n_prompt + n_generate):
        step.token[0], step.pos[0] = token, position
        context.decode(step)
        token = _likeliest(context)
        stamps.append(time.perf_counter())
    since = tuple(stamp - start for stamp in stamps)
    return TimedRun(int(tokens.size), len(stamps) - 1, computed - begun, since[0], since)


def timed_batch(
    model: Model, context: Context, text: str, n_prompt: int, n_generate: int, n_sequences: int
) -> BatchRun:
    """So many prompts, parts of the text that follow each other, and greedy tokens after each, in one batch a step."""
    context.kv_cache_clear(data=False)
    start = time.perf_counter()
    tokens = model.str_to_token(text)[: n_prompt * n_sequences]
    prompts = tokens.reshape(n_sequences, n_prompt)
    likeliest = np.zeros(n_sequences, np.int32)
    begun = time.perf_counter()
    for sequence, part in enumerate(prompts):
        for batch in _batches(part, context.n_batch, sequence):
            context.decode(batch)
        likeliest[sequence] = _likeliest(context)
    context.synchronize()
    computed = time.perf_counter()
    stamps = [computed]
    step = Batch(n_sequences)
    for sequence in range(n_sequences):
        step.extend([0], 0, sequence, True)
    for position in range(n_prompt, n_prompt + n_generate):
        step.token[:], step.pos[:] = likeliest, position
        context.decode(step)
        likeliest = context.get_logits().argmax(axis=1)
        stamps.append(time.perf_counter())
    since = tuple(stamp - start for stamp in stamps)
    return BatchRun(n_prompt, len(stamps) - 1, computed - begun, since[0], since, prompts.shape[0])


def capture(
    model: Model, context: Context, prompts: Sequence[str], n_generate: int, step: Callable[[], None]
) -> Captured:
    """Logits along the prompts, and greedy continuations.

    Of long prompts, or with a large vocabulary, logits are kept at evenly spread positions: at most ``LOGITS_MAX``
    bytes. ``step`` is called after each prompt.
    """
    n_continued = min(n_generate, CONTINUED)
    room = context.n_ctx_seq - n_continued
    texts = [model.str_to_token(prompt)[:room] for prompt in prompts]
    if any(text.size == 0 for text in texts):
        raise MoebindError(
            f"the tokenizer makes nothing of the prompt {shown(prompts[[t.size for t in texts].index(0)])}"
        )
    chosen = spread(sum(text.size for text in texts), LOGITS_MAX // (2 * model.n_vocab))
    rows: list[NDArray[np.float16]] = []
    top: list[int] = []
    greedy: list[list[int]] = []
    begin = 0
    for text in texts:
        context.kv_cache_clear(data=False)
        kept = chosen[(chosen >= begin) & (chosen < begin + text.size)] - begin
        begin += text.size
        token = 0
        for start in range(0, text.size, context.n_batch):
            part = text[start : start + context.n_batch]
            batch = Batch(part.size)
            batch.extend(part, start, 0, False)
            wanted = kept[(kept >= start) & (kept < start + part.size)] - start
            batch.logits[wanted] = True
            batch.logits[-1] = True
            context.decode(batch)
            for at in wanted:
                logits = context.get_logits_ith(int(at))
                if np.isnan(logits).any():
                    raise MoebindError("the logits are not all numbers: something is wrong with the weights")
                top.append(int(logits.argmax()))
                rows.append(np.maximum(logits - logits.max(), FLOOR).astype(np.float16))
            token = _likeliest(context)
        continued = [token]
        for position in range(int(text.size), int(text.size) + n_continued - 1):
            one = Batch(1)
            one.extend([token], position, 0, True)
            context.decode(one)
            token = _likeliest(context)
            continued.append(token)
        greedy.append(continued)
        step()
    return Captured(np.stack(rows), np.array(top, np.int32), np.array(greedy, np.int32))


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most``, and at least one, of the numbers below ``count``, evenly spread."""
    return np.unique(np.linspace(0, count - 1, max(1, min(count, most))).round().astype(np.int64))


def _likeliest(context: Context) -> int:
    return int(context.get_logits_ith(-1).argmax())


def _batches(tokens: NDArray[np.int32], n_batch: int, sequence: int = 0) -> list[Batch]:
    batches = []
    for start in range(0, tokens.size, n_batch):
        part = tokens[start : start + n_batch]
        batch = Batch(part.size)
        batch.extend(part, start, sequence, False)
        batch.logits[-1] = start + part.size == tokens.size
        batches.append(batch)
    return batches
