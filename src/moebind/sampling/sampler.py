"""Samplers: how the next token is chosen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.class_names import NamedClass, as_its_own
from moebind._core.context_base import ContextBase
from moebind._core.native import CData, clones, decoded, ffi, lib, own, part_of
from moebind._core.shown import shown
from moebind.backend.timings import SamplerTimings
from moebind.errors import ClosedError, NativeError, SamplerError
from moebind.sampling.candidates import TokenDataArray
from moebind.sampling.grammar import GrammarKinds
from moebind.sampling.kinds import SamplerKinds
from moebind.sampling.python import PythonKinds, applying

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

__all__ = ["SampledContext", "Sampler"]

#: libllama, and this module, go through chains in chains by recursion.
NESTING_MAX = 32
#: Choices that a lazy grammar may refuse, in one step, before it is an error.
REFUSED_MAX = 100


def check_sampler(sampler: object) -> None:
    """Raise TypeError if it is none."""
    if not isinstance(sampler, Sampler):
        made = getattr(sampler, "__self__", None) is Sampler
        hint = f", which {getattr(sampler, '__qualname__', '')}(...) gives" if made else ", such as Sampler.greedy()"
        raise TypeError(f"sampler is {shown(sampler)}; it takes a Sampler{hint}")


class SampledContext(ContextBase):
    """A context, as samplers know it. :class:`moebind.Context` is one."""

    @abstractmethod
    def _sample_with(self, sampler: Sampler, native: CData, at: int = -1) -> int:
        """Choose a token from one of its outputs, and accept it. The caller holds the context."""


@as_its_own(SamplerKinds, GrammarKinds, PythonKinds)
class Sampler(PythonKinds, metaclass=NamedClass):
    """A sampler, or a chain of samplers. Made by the class methods.

    Most samplers filter or change the candidates. :meth:`greedy`, :meth:`dist`, :meth:`mirostat`, :meth:`mirostat_v2`
    and :meth:`adaptive_p` choose one, and so can :meth:`from_callable`; a chain that is to choose tokens ends with one
    of these. A sampler that was put into a chain belongs to it and can no longer be used by itself.
    Calls on one sampler from several threads wait for each other.

    Examples
    --------
    >>> sampler = Sampler.chain([Sampler.top_k(40), Sampler.temp(0.8), Sampler.dist()])
    >>> token = sampler.sample(context)
    """

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("samplers are made by class methods, such as Sampler.greedy() or Sampler.chain_simple([...])")

    _parts: list[Sampler]
    #: Whether it is, or was, run by a context: it can be used with that one only.
    _attached = False
    #: Whether it is one of a chain's, which owns it.
    _is_part = False
    #: The highest token that it accepts.
    _limit = checks.INT32_MAX
    #: Whether it is for a text, and has let through tokens that were chosen.
    _has_text = False
    #: How many chains are in each other here.
    _nesting = 0

    # --- chains ---

    @classmethod
    def chain(cls, samplers: Iterable[Sampler], no_perf: bool = False) -> Self:
        """Apply samplers one after another (``llama_sampler_chain_init``, ``llama_sampler_chain_add``).

        Parameters
        ----------
        samplers
            The samplers, which then belong to the chain.
        no_perf
            Do not measure how long sampling takes.

        Raises
        ------
        ClosedError
            If a sampler was closed or belongs to a chain already.
        SamplerError
            If one was attached to a context, or chains nest deeper than 32.
        """
        if isinstance(samplers, Sampler) or isinstance(no_perf, Sampler):
            raise TypeError("chain takes a list of samplers: Sampler.chain([Sampler.top_k(40), Sampler.greedy()])")
        parts = list(samplers)
        for part in parts:
            if not isinstance(part, Sampler):
                raise TypeError(f"samplers holds {shown(part)}; it takes samplers, such as Sampler.greedy()")
            part._open()
            if part._is_part:
                raise ClosedError(f"{part!r} belongs to a chain already: put its clone() into this one")
            if any(each._attached for each in part._with_parts()):
                raise SamplerError(f"{part!r} is, or was, attached to a context: put its clone() into the chain")
        if len({id(part) for part in parts}) != len(parts):
            raise ClosedError("a sampler is in the list twice; use its clone()")
        if 1 + max((part._nesting for part in parts), default=0) > NESTING_MAX:
            raise SamplerError(f"chains nest deeper than {NESTING_MAX}")
        chain = cls._make(
            own(lib.own_llama_sampler_chain_init, {"no_perf": checks.boolean("no_perf", no_perf)}),
            holds=tuple(held for part in parts for held in part._holds),
            keep=tuple(kept for part in parts for kept in part._keep),
            chooses=bool(parts) and parts[-1]._chooses,
        )
        native = chain._open()
        for part in parts:
            moved = part._give_away_to(native)
            chain._show(moved, part, native)
            part._disown("its chain belongs to another chain now")
        chain._is_greedy = len(parts) == 1 and parts[0]._is_greedy
        chain._nesting = 1 + max((part._nesting for part in parts), default=0)
        chain._is_checked = any(part._is_checked for part in parts)
        return chain

    @classmethod
    @explained()
    def chain_simple(cls, samplers: Iterable[Sampler]) -> Self:
        """A chain that measures how long sampling takes: ``chain(samplers)``."""
        return cls.chain(samplers)

    def _give_away_to(self, chain: CData) -> CData:
        """Let a chain have the native sampler: it frees it from now on."""
        with self._lock.held():
            pointer = self._open()
            lib.moebind_chain_add(chain, pointer)
            self._pointer = None
            self._why_closed = "it belongs to a chain now"
            return pointer

    def _disown(self, why: str) -> None:
        """Close what this sampler shows of its chain."""
        for part in self._parts:
            part._why_closed, part._pointer, part._keep = why, None, ()
            part._disown(why)

    def _show(self, pointer: CData, part: Sampler, chain: CData) -> None:
        """Add a sampler that the native chain has, and is like ``part``, to those that this one shows."""
        shown = type(self).__new__(type(self))
        shown._pointer = part_of(chain, pointer)
        shown._is_part = True
        shown._lock = self._lock
        shown._holds, shown._keep = part._holds, self._keep
        shown._why_closed = Sampler._why_closed
        shown._copy_kind_from(part)
        shown._parts = []
        for index, inner in enumerate(part._parts):
            shown._show(lib.llama_sampler_chain_get(pointer, index), inner, chain)
        self._parts.append(shown)

    def _copy_kind_from(self, other: Sampler) -> None:
        """Copy what tells which kind of sampler the other one is."""
        self._chooses, self._is_greedy, self._is_adaptive = other._chooses, other._is_greedy, other._is_adaptive
        self._is_grammar, self._is_checked = other._is_grammar, other._is_checked
        self._is_for_a_text = other._is_for_a_text
        self._has_text = other._has_text
        self._nesting = other._nesting
        self._k, self._n_vocab, self._token_max = other._k, other._n_vocab, other._token_max

    def _with_parts(self) -> Iterator[Sampler]:
        """The sampler itself and all in it."""
        yield self
        for part in self._parts:
            yield from part._with_parts()

    def close(self) -> None:
        """Free the sampler, and those in it (``llama_sampler_free``). Closing twice does nothing."""
        if self._pointer is None:
            return
        with self._lock.held():
            self._disown("its chain was closed")
            self._pointer, self._keep = None, ()

    def _attach(self, n_vocab: int) -> None:
        """Note that a context runs it and its parts from now on: tokens beyond the vocabulary would end the process."""
        for part in self._with_parts():
            part._attached, part._limit = True, n_vocab - 1

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
        """The seed in use, or None if there is none (``llama_sampler_get_seed``)."""
        seed = int(lib.llama_sampler_get_seed(self._open()))
        return None if seed == lib.LLAMA_DEFAULT_SEED else seed

    def sample(self, ctx: SampledContext, idx: SupportsIndex = -1) -> int:
        """Choose a token from a context's logits, and accept it.

        Parameters
        ----------
        ctx
            After a ``decode``.
        idx
            Which output: an index in the batch, or -1 for the last one.

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
        Uses ``llama_sampler_sample``.
        """
        self._must_be_a_choice()
        at = checks.integer("idx", idx, -checks.INT32_MAX)
        if not isinstance(ctx, SampledContext):
            raise TypeError(f"ctx is {shown(ctx)}; it takes a Context")
        with ctx._exclusive() as native:
            return ctx._sample_with(self, native, at)

    def _sample_natively(self, native: CData, at: int) -> int:
        """``llama_sampler_sample``, by somebody who holds the sampler and the context."""
        with _as_sampler_errors(self):
            token = int(lib.llama_sampler_sample(self._open(), native, at))
        self._token_max = max(self._token_max, token)
        return token

    def _sample_checked(self, logits: NDArray[np.float32]) -> int:
        """Choose from all tokens where Python takes part or a grammar has to be asked, and accept the choice."""
        token = self._likeliest_allowed(logits)
        if token is None:
            token = self._chosen_and_allowed(logits)
        self._accept(token)
        self._note_choice()
        return token

    def _likeliest_allowed(self, logits: NDArray[np.float32]) -> int | None:
        """The choice of a chain of a grammar and the maximum, found without candidates; None: it is another chain.

        Most often the likeliest of all tokens is allowed, and then nothing has to be known about the others.
        """
        grammar, last = self._parts if len(self._parts) == 2 else (self, self)
        if not (grammar._is_grammar and last._is_greedy):
            return None
        with _as_sampler_errors(self):
            row = ffi.from_buffer("float[]", logits)
            token = int(lib.moebind_grammar_likeliest(grammar._open(), row, logits.size))
        return None if token == lib.LLAMA_TOKEN_NULL else token

    def _chosen_and_allowed(self, logits: NDArray[np.float32]) -> int:
        """The choice among candidates, which ``llama_sampler_sample`` would not show to Python."""
        refused: list[int] = []
        while True:
            array = TokenDataArray.from_logits(logits)
            array.data["logit"][refused] = -np.inf
            self._run(array)
            token = array.selected_token
            if token is None:
                raise SamplerError(f"{self!r} chose no token")
            if not 0 <= token < logits.size:
                raise SamplerError(f"{self!r} chose token {token}; the vocabulary has {logits.size}")
            forbidding = self._forbidding(token)
            if forbidding is None:
                return token
            # Only a lazy grammar sees a forbidden token come too late: the token that starts it, with more behind.
            if not lib.moebind_grammar_waits(forbidding._open()) or len(refused) == REFUSED_MAX:
                raise SamplerError(f"{self!r} chose token {token}, which its grammar forbids: put the grammar first")
            refused.append(token)

    def _note_choice(self) -> None:
        """Note that grammars have a text now, by tokens that were chosen."""
        for part in self._with_parts():
            part._has_text = part._is_for_a_text

    def _must_be_a_choice(self) -> None:
        self._open()
        if not self._chooses:
            raise SamplerError(f"{self!r} filters, but does not choose: end the chain in greedy() or dist()")

    def _must_choose(self) -> None:
        """Raise if it cannot choose the tokens of a text that begins."""
        self._must_be_a_choice()
        for part in self._with_parts():
            if part._has_text and not (part._is_grammar and lib.moebind_grammar_waits(part._open())):
                raise SamplerError(
                    f"{self!r} has chosen a text, and its grammar goes on there: reset() it for a new one, or use a "
                    "clone() for each. To go on with that text, reset it and accept_many() its tokens"
                )

    def _forbidding(self, token: int) -> Sampler | None:
        """The grammar in this sampler that forbids a token, if one does."""
        if not self._is_checked:
            return None
        with _as_sampler_errors(self):
            for part in self._with_parts():
                if part._is_grammar and not lib.moebind_grammar_allows(part._open(), token):
                    return part
        return None

    def _run(self, array: TokenDataArray) -> None:
        """``llama_sampler_apply``, by somebody who holds the sampler."""
        native = self._open()
        with array._lock, applying(array), _as_sampler_errors(self):
            try:
                lib.llama_sampler_apply(native, array._struct())
            finally:
                array._take_back()

    def apply(self, array: TokenDataArray) -> None:
        """Change candidates in place, without a copy (``llama_sampler_apply``).

        Parameters
        ----------
        array
            The candidates. Those that a grammar forbids stay, with a logit of -inf.

        Raises
        ------
        SamplerError
            If a grammar forbids the chosen candidate, or all that are left.
        """
        if not isinstance(array, TokenDataArray):
            raise TypeError(f"array is {shown(array)} ({type(array).__name__}); it takes a TokenDataArray")
        with self._lock.held():
            self._run(array)
            if not self._is_checked or not any(part._is_grammar for part in self._with_parts()):
                return
            token = array.selected_token
            if token is not None and self._forbidding(token) is not None:
                array.selected = None
                raise SamplerError(f"{self!r} chose token {token}, which its grammar forbids: put the grammar first")
            if token is None and not (array.data["logit"] > -np.inf).any():
                raise SamplerError(f"{self!r} left nothing to choose that its grammar allows: put the grammar first")

    def accept(self, token: SupportsIndex) -> None:
        """Tell the sampler that a token was chosen: penalties count it, grammars advance (``llama_sampler_accept``).

        Raises
        ------
        SamplerError
            If a grammar forbids it. The sampler is then unchanged; :meth:`try_accept` does not raise.
        """
        number = checks.integer("token", token, 0, self._limit)
        with self._lock.held():
            self._accept(number)

    def _accept(self, token: int) -> None:
        native = self._open()
        if self._forbidding(token) is not None:
            raise SamplerError(f"{self!r}: the grammar forbids token {token} here; it was not accepted")
        with _as_sampler_errors(self):
            lib.llama_sampler_accept(native, token)
        self._token_max = max(self._token_max, token)

    def try_accept(self, token: SupportsIndex) -> bool:
        """:meth:`accept` a token if the grammars allow it.

        Returns
        -------
        bool
            False if one forbids it; the sampler is then unchanged.

        Raises
        ------
        SamplerError
            If this cannot be decided, because the grammar is too ambiguous or a trigger's pattern takes too long.
        """
        number = checks.integer("token", token, 0, self._limit)
        with self._lock.held():
            self._open()
            if self._forbidding(number) is not None:
                return False
            self._accept(number)
            return True

    def accept_many(self, tokens: ArrayLike) -> None:
        """:meth:`accept` each of these tokens; those before one that a grammar forbids are accepted."""
        array = checks.int32_array("tokens", tokens, 0, self._limit)
        with self._lock.held():
            for token in array.tolist():
                self._accept(token)

    def with_tokens(self, tokens: ArrayLike) -> Self:
        """:meth:`accept` these tokens and return the sampler, for chaining calls."""
        self.accept_many(tokens)
        return self

    def reset(self) -> None:
        """Forget the accepted tokens, and restart the random numbers (``llama_sampler_reset``)."""
        with self._lock.held():
            lib.llama_sampler_reset(self._open())
            for part in self._with_parts():
                part._has_text = False

    def clone(self) -> Sampler:
        """A copy with the same state (``llama_sampler_clone``).

        For :meth:`adaptive_p`, llama.cpp copies the average but restarts the random numbers.
        """
        with self._lock.held():
            copy = self._cloned()
            copy._copy_kind_from(self)
            native = copy._open()
            for index, part in enumerate(self._parts):
                copy._show(lib.llama_sampler_chain_get(native, index), part, native)
            for each in copy._with_parts():
                if each._is_adaptive:
                    # The copy remembers what was chosen last, but not its probability, which it would read.
                    lib.llama_sampler_accept(each._open(), checks.INT32_MAX)
            return copy

    def _cloned(self) -> Sampler:
        """A copy of the native sampler, which keeps the copies of samplers in Python that are made for it."""
        before, clones.kept = clones.kept, []
        try:
            native = own(lib.own_llama_sampler_clone, self._open(), holds=self._holds)
            return self._make(native, holds=self._holds, keep=tuple(clones.kept))
        finally:
            clones.kept = before

    def timings(self) -> SamplerTimings:
        """How long a chain has taken so far; zeros with ``no_perf`` (``llama_perf_sampler``).

        Raises
        ------
        SamplerError
            If this is a single sampler: only chains measure.
        """
        with self._lock.held():
            data = lib.llama_perf_sampler(self._chain())
            return SamplerTimings(float(data.t_sample_ms), int(data.n_sample))

    def reset_timings(self) -> None:
        """Start measuring a chain anew (``llama_perf_sampler_reset``)."""
        with self._lock.held():
            lib.llama_perf_sampler_reset(self._chain())

    def _chain(self) -> CData:
        native = self._open()
        if not lib.llama_sampler_chain_get(native, -1):
            raise SamplerError(f"{self!r} is not a chain, and only chains measure: Sampler.chain([...])")
        return native

    def __repr__(self) -> str:
        if self.closed:
            return "<Sampler, closed>"
        inside = f" of {', '.join(part.name for part in self._parts)}" if self._parts else ""
        return f"<Sampler {self.name}{inside}>"


@contextmanager
def _as_sampler_errors(sampler: Sampler) -> Iterator[None]:
    """Raise errors of llama.cpp and of grammars as :class:`SamplerError`, with the sampler's name."""
    try:
        yield
    except NativeError as error:
        raise SamplerError(f"{sampler!r}: {error.message}") from error
