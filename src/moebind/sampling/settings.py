"""Short forms: the few numbers that most people set, and the chain of samplers that they stand for."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, SupportsIndex

from moebind._core import checks
from moebind.sampling.kinds import SEED_MAX
from moebind.sampling.sampler import Sampler, check_sampler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from moebind.sampling.candidates import TokenDataArray

__all__ = ["SAMPLERS", "Settings", "behind"]

#: llama.cpp's defaults (``common_params_sampling``), for what is not given beside something that is.
TEMPERATURE, TOP_K, TOP_P, MIN_P, PENALTY_LAST_N = 0.8, 40, 0.95, 0.05, 64

#: What other samplers, and the short forms themselves, look like in a chain.
SAMPLERS = {
    "temperature": "temp(0.8)",
    "top_k": "top_k(40)",
    "top_p": "top_p(0.95)",
    "min_p": "min_p(0.05)",
    "repeat_penalty": "penalties(64, penalty_repeat=1.1)",
    "presence_penalty": "penalties(64, penalty_present=0.5)",
    "frequency_penalty": "penalties(64, penalty_freq=0.5)",
    "seed": "dist(seed)",
    "typical_p": "typical(0.9)",
    "top_n_sigma": "top_n_sigma(2.0)",
    "logit_bias": "logit_bias({token: bias})",
    "grammar": "grammar(model, text)",
}


@dataclass(frozen=True)
class Settings:
    """What of a chain was given; None: not given. The arguments of ``Context.generate`` of these names."""

    temperature: float | None = None
    top_k: SupportsIndex | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: SupportsIndex | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, checks.INT32_MAX),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repeat_penalty", 1e-6, checks.INT32_MAX),
            ("presence_penalty", -checks.INT32_MAX, checks.INT32_MAX),
            ("frequency_penalty", -checks.INT32_MAX, checks.INT32_MAX),
        ):
            value = getattr(self, name)
            if value is not None:
                checks.number(name, value, low, high)
        # As llama.cpp's programs take them: -1 is all candidates, and a seed of the machine's choice.
        if self.top_k is not None:
            checks.integer("top_k", self.top_k, -1)
        if self.seed is not None:
            checks.integer("seed", self.seed, -1, SEED_MAX)

    def given(self) -> list[str]:
        """The names of those that were given."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def sampler(self, tokens: NDArray[np.int32], seed_offset: int = 0) -> Sampler | None:
        """The chain that they stand for, in llama.cpp's order; None if nothing was given.

        ``tokens`` are those of the prompt, which penalties count like llama.cpp's programs. ``seed_offset`` is added
        to a seed that was given, for texts that are to differ and yet to come again.
        """
        if not self.given():
            return None
        parts = []
        penalties = (
            _or(self.repeat_penalty, 1.0),
            _or(self.frequency_penalty, 0.0),
            _or(self.presence_penalty, 0.0),
        )
        if penalties != (1.0, 0.0, 0.0):
            parts.append(Sampler.penalties(PENALTY_LAST_N, *penalties).with_tokens(tokens[-PENALTY_LAST_N:]))
        temperature = _or(self.temperature, TEMPERATURE)
        if temperature == 0:
            # What filters keep the likeliest does not change that.
            return Sampler.chain([*parts, Sampler.greedy()])
        top_k = TOP_K if self.top_k is None else checks.integer("top_k", self.top_k, -1)
        top_p, min_p = _or(self.top_p, TOP_P), _or(self.min_p, MIN_P)
        if top_k > 0:
            parts.append(Sampler.top_k(top_k))
        if top_p < 1:
            parts.append(Sampler.top_p(top_p, 0))
        if min_p > 0:
            parts.append(Sampler.min_p(min_p, 0))
        seed = -1 if self.seed is None else checks.integer("seed", self.seed, -1, SEED_MAX)
        chosen = int.from_bytes(os.urandom(4), "little") if seed == -1 else seed + seed_offset
        return Sampler.chain([*parts, Sampler.temp(temperature), Sampler.dist(chosen % SEED_MAX)])

    def alone(self, sampler: Sampler | None) -> None:
        """Raise if a sampler was given, too.

        Raises
        ------
        TypeError
        """
        given = self.given()
        if sampler is not None and given:
            raise TypeError(
                f"sampler and {given[0]} are both given, but a sampler decides everything by itself: leave one of them "
                f"out, or put Sampler.{SAMPLERS[given[0]]} into the sampler's chain"
            )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


class _Borrowed:
    """A sampler of the caller's in a chain that does not own it, so that it remembers what was chosen."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def __call__(self, candidates: TokenDataArray) -> None:
        self._sampler.apply(candidates)

    def accept(self, token: int) -> None:
        self._sampler.accept(token)
        self._sampler._note_choice()


def behind(grammar: Sampler, sampler: Sampler | None, own: bool) -> Sampler:
    """A sampler that chooses only from what a grammar allows; None is the likeliest token.

    ``own`` is whether nobody else has the sampler: then it becomes a part of the chain.
    """
    if sampler is None:
        return Sampler.chain([grammar, Sampler.greedy()])
    check_sampler(sampler)
    sampler._must_choose()
    return Sampler.chain([grammar, sampler if own else Sampler.from_callable(_Borrowed(sampler))])
