"""The samplers that work on numbers alone: how each of them is made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex

from moebind._core import checks
from moebind._core.native import CData, ffi, lib, own
from moebind._core.owner import CallLock, Owner
from moebind._core.shown import shown
from moebind.errors import SamplerError

if TYPE_CHECKING:
    from typing_extensions import Self

    from moebind._core.model_base import ModelBase

__all__ = ["SamplerKinds"]

#: Samplers that look back allocate room for so many tokens.
LAST_N_MAX = 2**20
SEED_MAX = 2**32 - 1
#: llama.cpp cuts longer ones off, perhaps within a character.
BREAKER_BYTES_MAX = 40
#: Infilling compares every pair of candidates: so many take about 0.1 s.
INFILL_CANDIDATES_MAX = 1024


class SamplerKinds(Owner):
    """The class methods that make samplers. :class:`moebind.Sampler` has them."""

    _lock: CallLock
    #: Vocabularies that the native sampler points to, and holds.
    _holds: tuple[CData, ...]
    #: The samplers in Python that it calls. Nothing native keeps these.
    _keep: tuple[object, ...]
    #: Whether it chooses a token, or only filters.
    _chooses: bool
    _is_greedy: bool
    #: The samplers of a chain, ``Sampler`` like this one; they point into it.
    _parts: list[Any]

    # Numbers that must fit the model when a context runs the sampler in its graph.
    #: Candidates that top_k keeps.
    _k = 0
    #: The size of the vocabulary that penalties was made for.
    _n_vocab = 0
    #: The highest token that was accepted, or that a bias is for.
    _token_max = -1
    #: Whether it is for one text, as grammars are: what was chosen decides what may follow.
    _is_for_a_text = False
    #: Whether it is adaptive-p, whose copy has to forget what the original chose.
    _is_adaptive = False

    @classmethod
    def _make(
        cls,
        pointer: CData,
        *,
        holds: tuple[CData, ...] = (),
        keep: tuple[object, ...] = (),
        chooses: bool = False,
        greedy: bool = False,
    ) -> Self:
        """The object that has a native sampler, which is owned."""
        if not pointer:
            raise SamplerError("llama.cpp could not make the sampler")
        sampler = cls.__new__(cls)
        sampler._pointer = pointer
        sampler._lock = CallLock()
        sampler._holds, sampler._keep = holds, keep
        sampler._chooses = chooses
        sampler._is_greedy = greedy
        sampler._parts = []
        return sampler

    # --- those that choose ---

    @classmethod
    def greedy(cls) -> Self:
        """Choose the token with the highest logit (``llama_sampler_init_greedy``)."""
        return cls._make(own(lib.own_llama_sampler_init_greedy), chooses=True, greedy=True)

    @classmethod
    def dist(cls, seed: SupportsIndex | None = None) -> Self:
        """Choose at random, by probability (``llama_sampler_init_dist``).

        Parameters
        ----------
        seed
            0 to 2**32 - 1. None, or the last one: a random seed, which :attr:`seed` tells.
        """
        return cls._make(own(lib.own_llama_sampler_init_dist, _seed(seed)), chooses=True)

    @classmethod
    def mirostat(
        cls,
        n_vocab: SupportsIndex | ModelBase,
        seed: SupportsIndex | None,
        tau: float,
        eta: float,
        m: SupportsIndex = 100,
    ) -> Self:
        """Choose at random with a surprise that is kept near ``tau``, version 1 (``llama_sampler_init_mirostat``).

        Parameters
        ----------
        n_vocab
            Tokens in the vocabulary, or the model.
        seed
            0 to 2**32 - 1. None, or the last one: a random seed, which :attr:`seed` tells.
        tau
            The surprise to aim for, in bits, 0 or more; 5 is usual.
        eta
            How fast it adapts, 0 or more; 0.1 is usual.
        m
            How many of the likeliest tokens it estimates the distribution from, 1 or more.
        """
        size = n_vocab if isinstance(n_vocab, SupportsIndex) else _size(n_vocab)
        native = own(
            lib.own_llama_sampler_init_mirostat,
            checks.integer("n_vocab", size, 1),
            _seed(seed),
            checks.number("tau", tau, 0.0),
            checks.number("eta", eta, 0.0),
            checks.integer("m", m, 1),
        )
        return cls._make(native, chooses=True)

    @classmethod
    def mirostat_v2(cls, seed: SupportsIndex | None, tau: float, eta: float) -> Self:
        """Choose at random with a surprise that is kept near ``tau``, version 2 (``llama_sampler_init_mirostat_v2``).

        Parameters
        ----------
        seed
            0 to 2**32 - 1. None, or the last one: a random seed, which :attr:`seed` tells.
        tau
            The surprise to aim for, in bits, 0 or more; 5 is usual. Tokens with a surprise above a limit, which adapts,
            are not chosen.
        eta
            How fast the limit adapts, 0 or more; 0.1 is usual.
        """
        native = own(
            lib.own_llama_sampler_init_mirostat_v2,
            _seed(seed),
            checks.number("tau", tau, 0.0),
            checks.number("eta", eta, 0.0),
        )
        return cls._make(native, chooses=True)

    @classmethod
    def adaptive_p(cls, target: float, decay: float, seed: SupportsIndex | None) -> Self:
        """Choose at random, preferring tokens with a probability near ``target`` (``llama_sampler_init_adaptive_p``).

        Parameters
        ----------
        target
            The probability that chosen tokens should have on average, 0 to 1; negative: choose as :meth:`dist` does.
        decay
            How long the average remembers, 0 to 0.99: about ``1 / (1 - decay)`` tokens.
        seed
            0 to 2**32 - 1. None, or the last one: a random seed.
        """
        goal = checks.number("target", target, -math.inf, 1.0)
        native = own(lib.own_llama_sampler_init_adaptive_p, goal, checks.number("decay", decay, 0.0, 0.99), _seed(seed))
        sampler = cls._make(native, chooses=True)
        sampler._is_adaptive = True
        return sampler

    # --- those that filter and change ---

    @classmethod
    def top_k(cls, k: SupportsIndex) -> Self:
        """Keep the ``k`` most likely candidates; 0 keeps all (``llama_sampler_init_top_k``)."""
        count = checks.integer("k", k, 0)
        sampler = cls._make(own(lib.own_llama_sampler_init_top_k, count))
        sampler._k = count
        return sampler

    @classmethod
    def top_p(cls, p: float, min_keep: SupportsIndex = 1) -> Self:
        """Keep the most likely candidates that together reach probability ``p`` (``llama_sampler_init_top_p``).

        Parameters
        ----------
        p
            0 to 1; 1 keeps all.
        min_keep
            Keep at least this many.
        """
        return cls._make(own(lib.own_llama_sampler_init_top_p, checks.number("p", p, 0.0, 1.0), _min_keep(min_keep)))

    @classmethod
    def min_p(cls, p: float, min_keep: SupportsIndex = 1) -> Self:
        """Keep candidates at least ``p`` times as likely as the likeliest (``llama_sampler_init_min_p``).

        Parameters
        ----------
        p
            0 to 1; 0 keeps all.
        min_keep
            Keep at least this many.
        """
        return cls._make(own(lib.own_llama_sampler_init_min_p, checks.number("p", p, 0.0, 1.0), _min_keep(min_keep)))

    @classmethod
    def typical(cls, p: float, min_keep: SupportsIndex = 1) -> Self:
        """Keep the candidates whose surprise is nearest to the expected one (``llama_sampler_init_typical``).

        Parameters
        ----------
        p
            The probability that they reach together, 0 to 1; 1 keeps all.
        min_keep
            Keep at least this many.
        """
        return cls._make(own(lib.own_llama_sampler_init_typical, checks.number("p", p, 0.0, 1.0), _min_keep(min_keep)))

    @classmethod
    def top_n_sigma(cls, n: float) -> Self:
        """Forbid candidates whose logit is more than ``n`` standard deviations below the highest.

        Parameters
        ----------
        n
            0 or less keeps all.

        Notes
        -----
        Uses ``llama_sampler_init_top_n_sigma``. What is forbidden stays, with a logit of -inf.
        """
        return cls._make(own(lib.own_llama_sampler_init_top_n_sigma, checks.number("n", n)))

    @classmethod
    def xtc(cls, p: float, t: float, min_keep: SupportsIndex, seed: SupportsIndex | None) -> Self:
        """Now and then remove all likely candidates but the last of them: exclude top choices.

        Parameters
        ----------
        p
            How often, 0 to 1; 0 never.
        t
            The probability from which a candidate counts as likely, 0 to 1; above 0.5 the sampler does nothing.
        min_keep
            Remove nothing if fewer would be left.
        seed
            0 to 2**32 - 1. None, or the last one: a random seed.

        Notes
        -----
        Uses ``llama_sampler_init_xtc``.
        """
        often, limit = checks.number("p", p, 0.0, 1.0), checks.number("t", t, 0.0, 1.0)
        return cls._make(own(lib.own_llama_sampler_init_xtc, often, limit, _min_keep(min_keep), _seed(seed)))

    @classmethod
    def temp(cls, t: float) -> Self:
        """Divide the logits by ``t``; 0 leaves only the likeliest candidate (``llama_sampler_init_temp``)."""
        return cls._make(own(lib.own_llama_sampler_init_temp, checks.number("t", t, 0.0)))

    @classmethod
    def temp_ext(cls, t: float, delta: float, exponent: float) -> Self:
        """Divide the logits by a temperature that grows with their entropy (``llama_sampler_init_temp_ext``).

        Parameters
        ----------
        t
            The middle of the range, 0 or more.
        delta
            Its half width, 0 or more; 0: as :meth:`temp`.
        exponent
            Where in the range: the power of the entropy, which is 1 for equal probabilities and 0 for certainty.
        """
        native = own(
            lib.own_llama_sampler_init_temp_ext,
            checks.number("t", t, 0.0),
            checks.number("delta", delta, 0.0),
            checks.number("exponent", exponent, 0.0),
        )
        return cls._make(native)

    @classmethod
    def penalties(
        cls,
        penalty_last_n: SupportsIndex,
        penalty_repeat: float = 1.0,
        penalty_freq: float = 0.0,
        penalty_present: float = 0.0,
        *,
        n_vocab: SupportsIndex = 0,
    ) -> Self:
        """Make recently accepted tokens less likely (``llama_sampler_init_penalties``).

        Parameters
        ----------
        penalty_last_n
            How many accepted tokens count; 0 disables it.
        penalty_repeat
            Divides positive logits and multiplies negative ones, above 0; 1 disables it.
        penalty_freq
            Subtracted once for each time the token occurred; 0 disables it.
        penalty_present
            Subtracted if the token occurred; 0 disables it.
        n_vocab
            The size of the vocabulary; needed only to run it in a context's graph (``Context.set_sampler``).
        """
        last_n = checks.integer("penalty_last_n", penalty_last_n, 0, LAST_N_MAX)
        repeat = checks.number("penalty_repeat", penalty_repeat, 1e-6)
        freq = checks.number("penalty_freq", penalty_freq)
        present = checks.number("penalty_present", penalty_present)
        size = checks.integer("n_vocab", n_vocab, 0)
        sampler = cls._make(own(lib.own_llama_sampler_init_penalties, size, last_n, repeat, freq, present))
        sampler._n_vocab = size
        return sampler

    @classmethod
    def dry(
        cls,
        model: ModelBase,
        multiplier: float,
        base: float = 1.75,
        allowed_length: SupportsIndex = 2,
        penalty_last_n: SupportsIndex = 1024,
        seq_breakers: Iterable[str] = ("\n", ":", '"', "*"),
    ) -> Self:
        """Make tokens that would continue a repetition less likely: don't repeat yourself.

        Parameters
        ----------
        model
            The model whose vocabulary ``seq_breakers`` are looked up in.
        multiplier
            How strong it is; 0 disables it.
        base
            A repetition of ``n`` tokens costs ``multiplier * base ** (n - allowed_length)``; below 1 disables it.
        allowed_length
            Repetitions shorter than this cost nothing.
        penalty_last_n
            How many accepted tokens are searched; 0 disables it.
        seq_breakers
            Texts that end a repetition, of 1 to 40 bytes.

        Raises
        ------
        ValueError
            If a breaker is empty or too long.
        TokenizeError
            If the model has no vocabulary.

        Notes
        -----
        Uses ``llama_sampler_init_dry``. Breakers make it slow to set up: each is looked for in every token.
        """
        if isinstance(seq_breakers, (str, bytes)):
            raise TypeError(f"seq_breakers is {shown(seq_breakers)}; it takes a sequence of texts")
        breakers = [checks.text("seq_breakers", breaker) for breaker in seq_breakers]
        for breaker in breakers:
            if not 1 <= len(breaker) <= BREAKER_BYTES_MAX:
                raise ValueError(f"seq_breakers holds {shown(breaker)}; each has 1 to {BREAKER_BYTES_MAX} bytes")
        texts = [ffi.new("char[]", breaker) for breaker in breakers]
        native = own(
            lib.own_llama_sampler_init_dry,
            vocabulary(model),
            checks.number("multiplier", multiplier),
            checks.number("base", base),
            checks.integer("allowed_length", allowed_length, 0),
            checks.integer("penalty_last_n", penalty_last_n, 0, LAST_N_MAX),
            texts or ffi.NULL,
            len(texts),
        )
        return cls._make(native)

    @classmethod
    def logit_bias(cls, biases: Mapping[int, float], *, n_vocab: SupportsIndex | None = None) -> Self:
        """Add to the logits of some tokens (``llama_sampler_init_logit_bias``).

        Parameters
        ----------
        biases
            What to add, by token; ``-math.inf`` forbids one.
        n_vocab
            The size of the vocabulary; None: more than the largest token. It matters only in a context's graph
            (``Context.set_sampler``).
        """
        if not isinstance(biases, Mapping):
            raise TypeError(f"biases is {shown(biases)}; it takes a mapping of tokens to numbers")
        size = checks.INT32_MAX if n_vocab is None else checks.integer("n_vocab", n_vocab, 1)
        entries = [(checks.integer("token", token, 0, size - 1), _bias(token, bias)) for token, bias in biases.items()]
        if n_vocab is None:
            size = 1 + max((token for token, _ in entries), default=0)
        native = ffi.new("llama_logit_bias[]", entries)
        sampler = cls._make(own(lib.own_llama_sampler_init_logit_bias, size, len(entries), native))
        sampler._token_max = max((token for token, _ in entries), default=-1)
        return sampler

    @classmethod
    def infill(cls, model: ModelBase) -> Self:
        """Choose between going on and ending, when filling in the middle: for use after :meth:`top_k`.

        It ends the text if that is likely enough, and merges candidates of which one is the beginning of the other.

        Parameters
        ----------
        model
            The model whose vocabulary the candidates are from.

        Raises
        ------
        SamplerError
            If the model has no token that ends a turn or a text. When it is used with more than 1024 candidates, since
            it compares each with every other.

        Notes
        -----
        Uses ``llama_sampler_init_infill``.
        """
        vocab = vocabulary(model)
        if {lib.llama_vocab_eot(vocab), lib.llama_vocab_eos(vocab)} == {lib.LLAMA_TOKEN_NULL}:
            raise SamplerError("this model has no token that ends a turn or a text, which infilling needs")
        native = own(lib.own_moebind_sampler_infill, vocab, INFILL_CANDIDATES_MAX, holds=[vocab])
        return cls._make(native, holds=(vocab,))


def vocabulary(model: ModelBase) -> CData:
    """A model's ``llama_vocab``, which holds the model."""
    usable = getattr(model, "_usable_vocab", None)
    if usable is None:
        raise TypeError(f"model is {shown(model)} ({type(model).__name__}); it takes a Model")
    return usable()


def _size(model: ModelBase) -> int:
    vocabulary(model)
    return model.n_vocab


def _seed(value: SupportsIndex | None) -> int:
    return SEED_MAX if value is None else checks.integer("seed", value, 0, SEED_MAX)


def _min_keep(value: SupportsIndex) -> int:
    return checks.integer("min_keep", value, 0)


def _bias(token: int, value: float) -> float:
    if isinstance(value, float) and value == -math.inf:
        return value
    return checks.number(f"the bias of token {token}", value, -3e38, 3e38)
