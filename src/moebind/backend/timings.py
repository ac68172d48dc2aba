"""How long contexts and samplers took."""

from __future__ import annotations

from dataclasses import dataclass

from moebind._core.native import CData

__all__ = ["SamplerTimings", "Timings"]


@dataclass(frozen=True)
class Timings:
    """Times and counts of a context, since it was made or its timings were reset (``llama_perf_context``).

    Attributes
    ----------
    t_start_ms : float
        When it started, on llama.cpp's clock, in milliseconds.
    t_load_ms : float
        Milliseconds from the beginning of the load to the end of the first computation, which is part of it.
    t_p_eval_ms, t_eval_ms : float
        Milliseconds spent on prompts and batches, and on single tokens.
    n_p_eval, n_eval : int
        Tokens in prompts and batches, and tokens computed one at a time. llama.cpp never reports less than one.
    n_reused : int
        How many times the graph of the previous call could be reused.
    """

    t_start_ms: float
    t_load_ms: float
    t_p_eval_ms: float
    t_eval_ms: float
    n_p_eval: int
    n_eval: int
    n_reused: int = 0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of prompts and batches."""
        return 1e3 * self.n_p_eval / self.t_p_eval_ms if self.t_p_eval_ms else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of tokens computed one at a time."""
        return 1e3 * self.n_eval / self.t_eval_ms if self.t_eval_ms else 0.0

    def __str__(self) -> str:
        return (
            f"prompt {self.n_p_eval} tokens in {self.t_p_eval_ms:.0f} ms ({self.prompt_tokens_per_second:.1f}/s); "
            f"decode {self.n_eval} tokens in {self.t_eval_ms:.0f} ms ({self.tokens_per_second:.1f}/s)"
        )


def read_timings(data: CData) -> Timings:
    """From a ``struct llama_perf_context_data``."""
    return Timings(
        data.t_start_ms, data.t_load_ms, data.t_p_eval_ms, data.t_eval_ms, data.n_p_eval, data.n_eval, data.n_reused
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
