"""Samplers: how the next token is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, SupportsIndex

from moebind import checks
from moebind._native import CData, decoded, ffi, lib, own
from moebind._owner import CallLock, Owner
from moebind.errors import ClosedError, NativeError, SamplerError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Self

    from moebind.context import Context
    from moebind.outputs import Outputs
    from moebind.token_data import TokenDataArray

__all__ = ["Sampler"]

#: ``llama_sampler_init_penalties`` allocates a ring of this many tokens.
LAST_N_MAX = 2**20
SEED_MAX = 2**32 - 1


class Sampler(Owner):
    """One sampler, or a chain of them. Made by the class methods.

    Most filter or change the candidates; :meth:`greedy` and :meth:`dist` choose one, and a chain that is to choose
    tokens ends in one of those. A sampler that was put into a chain belongs to it and cannot be used alone any more.

    Calls on one sampler from several threads wait for each other.

    Examples
    --------
    >>> sampler = Sampler.chain_simple([Sampler.top_k(40), Sampler.temp(0.8), Sampler.dist(1234)])
    >>> token = sampler.sample(context)
    """

    def __init__(self) -> None:
        raise TypeError("samplers are made by class methods, such as Sampler.greedy() or Sampler.chain_simple([...])")

    @classmethod
    def _make(cls, pointer: CData, *keep: object, chooses: bool = False) -> Self:
        if not pointer:
            raise SamplerError("llama.cpp could not make the sampler")
        sampler = cls.__new__(cls)
        sampler._pointer = own(pointer, lib.llama_sampler_free, *keep)
        sampler._lock = CallLock()
        sampler._keep = keep
        sampler._chooses = chooses
        sampler._is_greedy = False
        sampler._parts = []
        return sampler

    _lock: CallLock
    #: What the native sampler points to.
    _keep: tuple[object, ...]
    #: Whether it chooses a token, or only filters.
    _chooses: bool
    _is_greedy: bool
    #: The samplers of a chain; they point into it.
    _parts: list[Sampler]
    #: Whether it is, or was, run by a context: it can be used with that one only.
    _attached = False
    #: The highest token that it accepts.
    _limit = checks.INT32_MAX
    #: What must fit a model when a context runs it: candidates that top_k keeps, the vocabulary that penalties was made
    #: for, the highest token that a bias or an accepted token names.
    _k = 0
    _n_vocab = 0
    _token_max = -1

    # --- those that choose ---

    @classmethod
    def greedy(cls) -> Self:
        """Choose the token with the highest logit (``llama_sampler_init_greedy``)."""
        sampler = cls._make(lib.llama_sampler_init_greedy(), chooses=True)
        sampler._is_greedy = True
        return sampler

    @classmethod
    def dist(cls, seed: SupportsIndex) -> Self:
        """Choose at random, by probability (``llama_sampler_init_dist``).

        Parameters
        ----------
        seed
            0 to 2**32 - 1; the last one means a random seed.
        """
        return cls._make(lib.llama_sampler_init_dist(checks.integer("seed", seed, 0, SEED_MAX)), chooses=True)

    # --- those that filter and change ---

    @classmethod
    def top_k(cls, k: SupportsIndex) -> Self:
        """Keep the ``k`` most likely candidates; 0 keeps all (``llama_sampler_init_top_k``)."""
        count = checks.integer("k", k, 0)
        sampler = cls._make(lib.llama_sampler_init_top_k(count))
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
            Keep at least so many.
        """
        return cls._make(lib.llama_sampler_init_top_p(checks.number("p", p, 0.0, 1.0), _min_keep(min_keep)))

    @classmethod
    def min_p(cls, p: float, min_keep: SupportsIndex = 1) -> Self:
        """Keep candidates at least ``p`` times as likely as the likeliest (``llama_sampler_init_min_p``).

        Parameters
        ----------
        p
            0 to 1; 0 keeps all.
        min_keep
            Keep at least so many.
        """
        return cls._make(lib.llama_sampler_init_min_p(checks.number("p", p, 0.0, 1.0), _min_keep(min_keep)))

    @classmethod
    def temp(cls, t: float) -> Self:
        """Divide the logits by ``t``; 0 leaves the likeliest candidate only (``llama_sampler_init_temp``)."""
        return cls._make(lib.llama_sampler_init_temp(checks.number("t", t, 0.0)))

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
        """Make tokens that were accepted lately less likely (``llama_sampler_init_penalties``).

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
        sampler = cls._make(lib.llama_sampler_init_penalties(size, last_n, repeat, freq, present))
        sampler._n_vocab = size
        return sampler

    # --- chains ---

    @classmethod
    def chain(cls, samplers: Iterable[Sampler], no_perf: bool = False) -> Self:
        """Apply samplers one after another (``llama_sampler_chain_init``).

        Parameters
        ----------
        samplers
            They belong to the chain from now on.
        no_perf
            Do not measure how long sampling takes.

        Raises
        ------
        ClosedError
            If a sampler was closed or belongs to a chain already.
        SamplerError
            If one was attached to a context.
        """
        parts = list(samplers)
        for part in parts:
            if not isinstance(part, Sampler):
                raise TypeError(f"samplers holds {part!r}; it takes samplers")
            part._open()
            if part._attached:
                raise SamplerError(f"{part!r} is, or was, attached to a context: put its clone() into the chain")
        if len({id(part) for part in parts}) != len(parts):
            raise ClosedError("a sampler is in the list twice; use its clone()")
        chooses = bool(parts) and parts[-1]._chooses
        native = lib.llama_sampler_chain_init({"no_perf": checks.boolean("no_perf", no_perf)})
        chain = cls._make(native, *(kept for part in parts for kept in part._keep), chooses=chooses)
        for part in parts:
            moved = part._give_away()
            lib.llama_sampler_chain_add(native, moved)
            chain._show(moved, part)
        chain._is_greedy = len(parts) == 1 and parts[0]._is_greedy
        return chain

    @classmethod
    def chain_simple(cls, samplers: Iterable[Sampler]) -> Self:
        """A chain that measures how long sampling takes: ``chain(samplers)``."""
        return cls.chain(samplers)

    def _give_away(self) -> CData:
        """Let a chain have the native sampler: it frees it from now on."""
        pointer = self._open()
        ffi.gc(pointer, None)
        self._pointer = None
        self._why_closed = "it belongs to a chain now"
        return pointer

    def _show(self, pointer: CData, part: Sampler) -> None:
        """Add a sampler that the native chain has to those that this one shows."""
        shown = type(part).__new__(type(part))
        shown._pointer = pointer
        shown._lock = self._lock
        shown._keep = (*part._keep, self._pointer)
        shown._chooses, shown._is_greedy, shown._parts = part._chooses, part._is_greedy, part._parts
        shown._k, shown._n_vocab, shown._token_max = part._k, part._n_vocab, part._token_max
        self._parts.append(shown)

    def close(self) -> None:
        """Free the sampler, and those in it. Closing twice does nothing."""
        if self._pointer is None:
            return
        with self._lock.held():
            for part in self._parts:
                part._why_closed = "its chain was closed"
                part._pointer = None
            self._pointer = None

    def _attach(self, n_vocab: int) -> None:
        """A context runs it from now on, and those in it: tokens beyond the vocabulary would end the process."""
        self._attached, self._limit = True, n_vocab - 1
        for part in self._parts:
            part._attach(n_vocab)

    def __len__(self) -> int:
        """How many samplers the chain has; a single sampler has none in it."""
        self._open()
        return len(self._parts)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: SupportsIndex) -> Sampler:
        """One sampler of the chain; it can be used as long as the chain is open (``llama_sampler_chain_get``)."""
        self._open()
        return self._parts[checks.integer("index", index, -len(self._parts), max(len(self._parts) - 1, 0))]

    def __iter__(self) -> Iterator[Sampler]:
        self._open()
        return iter(self._parts)

    # --- use ---

    @property
    def name(self) -> str:
        """llama.cpp's name for it (``llama_sampler_name``)."""
        return decoded(lib.llama_sampler_name(self._open()))

    @property
    def seed(self) -> int | None:
        """The seed in use, or None where there is none (``llama_sampler_get_seed``)."""
        seed = int(lib.llama_sampler_get_seed(self._open()))
        return None if seed == lib.LLAMA_DEFAULT_SEED else seed

    def sample(self, ctx: Context, idx: SupportsIndex = -1) -> int:
        """Choose a token from a context's logits, and accept it.

        Parameters
        ----------
        ctx
            After a ``decode``.
        idx
            Which output: a place in the batch, or -1 for the last one.

        Returns
        -------
        int
            The token's id.

        Raises
        ------
        SamplerError
            If this sampler, or the last of the chain, does not choose.
        IndexError
            If the batch asked for no output there.

        Notes
        -----
        Stands on ``llama_sampler_sample``.
        """
        self._must_choose()
        at = checks.integer("idx", idx, -checks.INT32_MAX)
        with ctx._exclusive() as native:
            return self._sample(ctx, native, at)

    def _sample(self, ctx: Outputs, native: CData, at: int = -1) -> int:
        """:meth:`sample`, by somebody who holds the context."""
        ctx._sampling_row(at)
        if self._attached and ctx._attached.get(ctx._sequence_of_output(at)) is not self:
            raise SamplerError(
                f"{self!r} runs, or ran, in the graph of a context for another sequence: sample with a clone() of it"
            )
        with self._lock.held():
            try:
                with ctx._suppressing(native, at) if ctx._suppress is not None else nullcontext():
                    token = int(lib.llama_sampler_sample(self._open(), native, at))
                self._token_max = max(self._token_max, token)
                return token
            except NativeError as error:
                raise SamplerError(f"{self!r} chose no token: {error.message}") from error

    def _must_choose(self) -> None:
        self._open()
        if not self._chooses:
            raise SamplerError(f"{self!r} filters, but does not choose: end the chain in greedy() or dist(seed)")

    def apply(self, array: TokenDataArray) -> None:
        """Change candidates in place, without a copy (``llama_sampler_apply``)."""
        with self._lock.held():
            lib.llama_sampler_apply(self._open(), array._struct())
            array._take_back()

    def accept(self, token: SupportsIndex) -> None:
        """Tell the sampler that a token was chosen: penalties count it (``llama_sampler_accept``)."""
        number = checks.integer("token", token, 0, self._limit)
        with self._lock.held():
            lib.llama_sampler_accept(self._open(), number)
            self._token_max = max(self._token_max, number)

    def accept_many(self, tokens: ArrayLike) -> None:
        """:meth:`accept` each of these tokens."""
        array = checks.int32_array("tokens", tokens, 0, self._limit)
        with self._lock.held():
            self._token_max = max(self._token_max, int(array.max(initial=-1)))
            for token in array.tolist():
                lib.llama_sampler_accept(self._open(), token)

    def with_tokens(self, tokens: ArrayLike) -> Self:
        """:meth:`accept` these tokens and return the sampler, for chaining calls."""
        self.accept_many(tokens)
        return self

    def reset(self) -> None:
        """Forget what was accepted, and start the random numbers again (``llama_sampler_reset``)."""
        with self._lock.held():
            lib.llama_sampler_reset(self._open())

    def clone(self) -> Sampler:
        """A copy with the same state (``llama_sampler_clone``)."""
        with self._lock.held():
            copy = self._make(lib.llama_sampler_clone(self._open()), *self._keep, chooses=self._chooses)
            copy._is_greedy = self._is_greedy
            copy._k, copy._n_vocab, copy._token_max = self._k, self._n_vocab, self._token_max
            native = copy._open()
            for index, part in enumerate(self._parts):
                copy._show(lib.llama_sampler_chain_get(native, index), part)
            return copy

    def __repr__(self) -> str:
        if self.closed:
            return "<Sampler, closed>"
        inside = f" of {', '.join(part.name for part in self._parts)}" if self._parts else ""
        return f"<Sampler {self.name}{inside}>"


def _min_keep(value: SupportsIndex) -> int:
    return checks.integer("min_keep", value, 0)
