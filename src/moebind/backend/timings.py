"""How long contexts and samplers took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from moebind._core.native import CData, lib
from moebind._core.sizes import show_size

__all__ = ["Counted", "MoeCacheStats", "SamplerTimings", "SpeculativeCounts", "Timings", "WrittenCounts"]


@dataclass(frozen=True)
class MoeCacheStats:
    """What the cache of experts of a context counted (:attr:`ContextParams.moe_cache_size`).

    Batches of more than 32 tokens use no slots, and count neither hits nor misses.

    Attributes
    ----------
    n_slots : int
        How many experts the cache holds, over all layers that share it.
    hits, misses : int
        Experts that were in the cache when a layer needed them, and that were not.
    bytes_uploaded : int
        Bytes that went from host memory to the device for the misses.
    copied : int
        Experts that large batches took from the cache instead of host memory.
    """

    n_slots: int
    hits: int
    misses: int
    bytes_uploaded: int
    copied: int = 0

    @property
    def hit_rate(self) -> float:
        """Hits among all that was looked up; NaN if nothing was."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else float("nan")

    def _since(self, before: MoeCacheStats) -> MoeCacheStats:
        """What came after another count of the same cache."""
        return MoeCacheStats(
            self.n_slots,
            self.hits - before.hits,
            self.misses - before.misses,
            self.bytes_uploaded - before.bytes_uploaded,
            self.copied - before.copied,
        )

    def __str__(self) -> str:
        return (
            f"{self.hit_rate:.1%} of {self.hits + self.misses} experts were in the cache of {self.n_slots}; "
            f"{show_size(self.bytes_uploaded)} uploaded"
        )


@dataclass
class SpeculativeCounts:
    """What was drafted for a context, counted while it goes on."""

    n_drafted: int = 0
    n_accepted: int = 0
    t_draft_us: int = 0
    #: Why drafting was switched off last.
    stopped: str | None = None

    def add(self, n_drafted: int, n_accepted: int) -> None:
        """So many tokens were drafted, and so many of them were right."""
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted

    @contextmanager
    def drafting(self) -> Iterator[None]:
        """Stand around what drafting takes besides the target's own computation."""
        began = lib.llama_time_us()
        try:
            yield
        finally:
            self.t_draft_us += lib.llama_time_us() - began


class Counted(NamedTuple):
    """What was counted at some time."""

    n_several: int
    t_several_ms: float
    t_single_ms: float


@dataclass
class WrittenCounts:
    """What llama.cpp counts on the other side, as it tells prompts from texts by the size of the batch.

    Several tokens at once may be for texts that go on: a token with what was drafted after it, and one token each of
    several texts. A single one may be a prompt, or what of it was not computed before.
    """

    #: Tokens that were computed for texts, several at once, and those that the texts got of it.
    n_computed: int = 0
    n_written: int = 0
    t_ms: float = 0.0
    #: Single tokens of prompts.
    n_of_prompts: int = 0
    t_of_prompts_ms: float = 0.0
    #: What batches of several took that had more outputs than any before: llama.cpp, which then makes room for them,
    #: counts their tokens and not their time.
    t_uncounted_ms: float = 0.0

    def counted(self, native: CData) -> Counted:
        """What was counted so far; waits for what is computed."""
        now = lib.llama_perf_context(native)
        return Counted(_n_several(now), now.t_p_eval_ms + self.t_uncounted_ms, now.t_eval_ms)

    def add(self, native: CData, before: Counted, n_computed: int, n_written: int) -> None:
        """Count what was computed since ``before``; its outputs were read.

        Where prompts were computed with it, it has its share of the time, by its tokens.
        """
        now = self.counted(native)
        n_tokens = now.n_several - before.n_several
        if n_tokens > 0:  # a single token is counted as one
            self.n_computed += n_computed
            self.n_written += n_written
            self.t_ms += (now.t_several_ms - before.t_several_ms) * min(1, n_computed / n_tokens)

    def add_prompt(self, native: CData, before: Counted) -> None:
        """Count what was computed since ``before`` as a prompt, if it was a single token; its outputs were read."""
        now = self.counted(native)
        if now.n_several == before.n_several:  # several are counted as a prompt already
            self.n_of_prompts += 1
            self.t_of_prompts_ms += now.t_single_ms - before.t_single_ms

    @contextmanager
    def making_room(self, native: CData) -> Iterator[None]:
        """Measure a batch for which llama.cpp makes room."""
        before, begun = self.counted(native), time.perf_counter()
        yield
        lib.llama_synchronize(native)
        took = 1e3 * (time.perf_counter() - begun)
        now = self.counted(native)
        if now.n_several > before.n_several:
            self.t_uncounted_ms += max(0.0, took - (now.t_several_ms - before.t_several_ms))


@dataclass(frozen=True)
class Timings:
    """Times and counts of a context, since it was made or its timings were reset (``llama_perf_context``).

    llama.cpp tells prompts from single tokens by the size of the batch. ``generate``, ``generate_many`` and
    :class:`Engine` count by what a batch is for. A text that goes on counts as single tokens, also where a batch has a
    token of each of several texts, or one with those drafted after it. A prompt counts as a prompt, even if a single
    token of it is computed. The time of a batch that has both is shared out by tokens. Batches of your own are counted
    as llama.cpp does.

    Attributes
    ----------
    t_start_ms : float
        When it started, on llama.cpp's clock, in milliseconds.
    t_load_ms : float
        Milliseconds from the beginning of the load to the end of the first computation, which is part of it.
    t_p_eval_ms, t_eval_ms : float
        Milliseconds spent on prompts and batches, and on texts that go on and single tokens.
    n_p_eval, n_eval : int
        Tokens in prompts and batches, and tokens that texts got, or that were computed one at a time. Drafted tokens
        that were wrong are in neither. The first token of a text comes from its prompt, and is not counted. Never less
        than one, as in llama.cpp.
    n_reused : int
        How many times the graph of the previous call could be reused.
    moe_cache : MoeCacheStats or None
        What the cache of experts counted in that time; None if the context has none.
    n_drafted, n_accepted : int
        Tokens that were drafted by speculative decoding and computed, and those of them that were right.
    t_draft_ms : float
        Milliseconds spent on drafting them. What computing them took is in ``t_eval_ms``.
    draft_stopped : str or None
        Why drafting was switched off last, with ``auto``; None: it was not.
    """

    t_start_ms: float
    t_load_ms: float
    t_p_eval_ms: float
    t_eval_ms: float
    n_p_eval: int
    n_eval: int
    n_reused: int = 0
    moe_cache: MoeCacheStats | None = None
    n_drafted: int = 0
    n_accepted: int = 0
    t_draft_ms: float = 0.0
    draft_stopped: str | None = None

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens that were right; NaN if none was drafted."""
        return self.n_accepted / self.n_drafted if self.n_drafted else float("nan")

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of prompts and batches."""
        return 1e3 * self.n_p_eval / self.t_p_eval_ms if self.t_p_eval_ms else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of texts that go on, all of them together, and of single tokens; with what drafting took."""
        took = self.t_eval_ms + self.t_draft_ms
        return 1e3 * self.n_eval / took if took else 0.0

    def __str__(self) -> str:
        return (
            f"prompt {self.n_p_eval} tokens in {self.t_p_eval_ms:.0f} ms ({self.prompt_tokens_per_second:.1f}/s); "
            f"decode {self.n_eval} tokens in {self.t_eval_ms + self.t_draft_ms:.0f} ms ({self.tokens_per_second:.1f}/s)"
            + (
                f", {self.t_draft_ms:.0f} ms of that for drafts; {self.acceptance:.1%} of {self.n_drafted} drafted "
                "tokens were right"
                if self.n_drafted
                else ""
            )
            + (f"; {self.moe_cache}" if self.moe_cache is not None else "")
            + (f"; drafting was switched off: {self.draft_stopped}" if self.draft_stopped else "")
        )


def _n_several(data: CData) -> int:
    """Tokens that were computed several at a time: never one, which llama.cpp says where there are none."""
    return 0 if data.n_p_eval == 1 else int(data.n_p_eval)


def read_timings(
    data: CData,
    moe_cache: MoeCacheStats | None = None,
    drafts: SpeculativeCounts | None = None,
    written: WrittenCounts | None = None,
) -> Timings:
    """From a ``struct llama_perf_context_data``."""
    counts, texts = drafts or SpeculativeCounts(), written or WrittenCounts()
    # Without any single token, it says one.
    perhaps_none = data.n_eval == 1 and not (data.t_eval_ms or texts.n_of_prompts)
    n_single = 0 if texts.n_written and perhaps_none else data.n_eval
    return Timings(
        data.t_start_ms,
        data.t_load_ms,
        max(0.0, data.t_p_eval_ms + texts.t_uncounted_ms - texts.t_ms) + texts.t_of_prompts_ms,
        max(0.0, data.t_eval_ms - texts.t_of_prompts_ms) + texts.t_ms,
        max(1, _n_several(data) - texts.n_computed + texts.n_of_prompts),
        max(1, n_single - texts.n_of_prompts + texts.n_written),
        data.n_reused,
        moe_cache,
        counts.n_drafted,
        counts.n_accepted,
        counts.t_draft_us / 1e3,
        counts.stopped,
    )


@dataclass(frozen=True)
class SamplerTimings:
    """Times and counts of a chain of samplers, since it was made or its timings were reset (``llama_perf_sampler``).

    Attributes
    ----------
    t_sample_ms : float
        Milliseconds spent on applying and accepting.
    n_sample : int
        Tokens accepted.
    """

    t_sample_ms: float
    n_sample: int

    def __str__(self) -> str:
        return f"{self.n_sample} tokens sampled in {self.t_sample_ms:.1f} ms"
