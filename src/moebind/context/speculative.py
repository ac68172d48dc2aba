"""Speculative decoding: what drafts tokens for a context, which then computes them all at once.

The context that verifies is the target. Whatever is drafted, it chooses its tokens itself, each after those that it
chose before, so that the text is its own. ``speculate.py`` has the loop, ``drafting.py`` what happens between the two.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, SupportsIndex

from moebind._core import checks
from moebind._core.native import ffi, lib, own
from moebind._core.owner import Owner
from moebind._core.shown import shown
from moebind.context.decode import Decoding
from moebind.context.draft_checks import FROM_STATES, check_draft, inferred, kinds_of
from moebind.context.drafting import Drafting, DraftModel
from moebind.context.speculative_judge import Judge
from moebind.enums import SpeculativeType
from moebind.errors import NativeError, SpeculativeError

if TYPE_CHECKING:
    from moebind._core.native import CData

__all__ = ["Speculative"]

#: llama.cpp keeps these in 16 bits, and its programs take up to 1024.
N_MAX = 1024


class Speculative(Owner):
    """Something that drafts tokens for a context. ``Context.generate(..., speculative=...)`` uses it.

    Parameters
    ----------
    target_context
        The context that generates.
    draft
        A context of the model that drafts, with as many sequences, and room for as many tokens in each; None for
        n-grams, which are looked up in the text so far.
    kind
        Who drafts; None: what the draft's file says, or ``NGRAM_SIMPLE`` without a draft. Also llama.cpp's names, such
        as ``"ngram-mod"``. Of several kinds, the first that has something to offer drafts; n-grams come first.
    n_max
        The most tokens to draft at once; None: llama.cpp's default, 3 for models, 48 or 64 for n-grams.
    n_min
        Fewer drafted tokens are not used. Not for all n-grams.
    p_min
        A draft model stops where it is less sure than this of its next token.
    n_match
        How many tokens of the text n-grams compare; None: llama.cpp's default, 12, or 24 for ``NGRAM_MOD``, and at most
        ``n_max`` for ``NGRAM_SIMPLE``, which drafts no fewer: what it finds lies more than so many tokens back.
    min_hits
        How often an n-gram must have been looked up before it is used, for ``NGRAM_MAP_K4V``.
    auto
        Measure steps with drafts and without in turn, and stop drafting for a while if it loses, for the next texts,
        too. What it can lose is bounded: the time of four tokens without drafts, and of three drafted steps. The logger
        ``moebind.speculative`` tells, and :class:`Timings`.

    Raises
    ------
    SpeculativeError
        If this draft cannot be used with this context; the message says why.

    Notes
    -----
    Uses llama-common's ``common_speculative``. The draft's context belongs to it until it is closed: do not generate
    with that context meanwhile. A draft may be on other devices than the target.

    Examples
    --------
    >>> with Speculative(context, draft_context, n_max=4) as speculative:
    ...     text = context.generate("Once upon a time", speculative=speculative)
    ...     print(text.complete())
    """

    _elsewhere = "make the contexts there again"

    def __init__(
        self,
        target_context: Decoding,
        draft: Decoding | None = None,
        *,
        kind: SpeculativeType | int | str | Sequence[SpeculativeType | int | str] | None = None,
        n_max: SupportsIndex | None = None,
        n_min: SupportsIndex | None = None,
        p_min: float | None = None,
        n_match: SupportsIndex | None = None,
        min_hits: SupportsIndex | None = None,
        auto: bool = False,
    ) -> None:
        for name, given in (("target_context", target_context), ("draft", draft)):
            if not isinstance(given, Decoding) and not (given is None and name == "draft"):
                raise TypeError(f"{name} is {shown(given)}; it takes a Context, made by Model.new_context(params)")
        kinds = inferred(draft) if kind is None else kinds_of(kind)
        most = None if n_max is None else checks.integer("n_max", n_max, 1, N_MAX)
        least = None if n_min is None else checks.integer("n_min", n_min, 0, N_MAX)
        if most is not None and least is not None and least > most:
            raise ValueError(f"n_min is {least}; it takes at most n_max, {most}")
        sure = None if p_min is None else checks.number("p_min", p_min, 0, 1)
        matched = None if n_match is None else checks.integer("n_match", n_match, 1, N_MAX)
        if SpeculativeType.NGRAM_SIMPLE in kinds and matched is not None and most is not None and most < matched:
            raise ValueError(
                f"n_max is {most} and n_match is {matched}: NGRAM_SIMPLE drafts at least as many as it compares"
            )
        hits = None if min_hits is None else checks.integer("min_hits", min_hits, 1, 2**16 - 1)
        self._judge = Judge() if checks.boolean("auto", auto) else None
        check_draft(target_context, draft, kinds)
        self._target, self._draft, self._kinds = target_context, draft, kinds
        numbers = ffi.new("int32_t[]", [int(each) for each in kinds])
        params = ffi.new("struct moebind_speculative_params *")
        params.types, params.n_types = numbers, len(kinds)
        params.n_seq = target_context.n_seq_max
        params.n_max, params.n_min = most or -1, -1 if least is None else least
        params.p_min = -1 if sure is None else sure
        params.n_match, params.min_hits = matched or 0, hits or 0
        with ExitStack() as held:
            params.target = target = held.enter_context(target_context._exclusive())
            holds: list[CData] = [target]
            if draft is not None:
                held.enter_context(draft._lock.held())
                params.draft = opened = draft._open()
                holds.append(opened)
                self._settle(draft, opened)
            if FROM_STATES.intersection(kinds):
                self._settle(target_context, target)
            try:
                self._pointer = own(lib.own_moebind_speculative_new, params, holds=holds)
            except NativeError as error:
                raise SpeculativeError(f"llama.cpp refuses this draft: {error.message}") from error
        self._n_max = int(lib.moebind_speculative_n_max(self._pointer))
        if draft is not None:
            # Whoever stops the target stops what drafts for it. Held natively: either may be collected first.
            lib.moebind_hold(draft._hooks.pointer, target_context._hooks.pointer)
            lib.moebind_hooks_follow(draft._hooks.pointer, target_context._hooks.pointer)
            draft._drafter = weakref.ref(self)
        self._drafting = (
            Drafting(target_context, self._open)
            if draft is None
            else DraftModel(target_context, self._open, draft, kinds)
        )
        target_context._speculatives.add(self)

    @staticmethod
    def _settle(context: Decoding, native: CData) -> None:
        """Leave its outputs to the arrays that show them: from now on there are more. The caller holds the context."""
        context._release_outputs(native)
        context._forget_outputs()
        context._outputs_reserved = 0

    @property
    def target_context(self) -> Decoding:
        """The context that generates."""
        return self._target

    @property
    def draft_context(self) -> Decoding | None:
        """The context that drafts; None for n-grams alone."""
        return self._draft

    @property
    def kinds(self) -> tuple[SpeculativeType, ...]:
        """Who drafts."""
        return self._kinds

    @property
    def n_max(self) -> int:
        """The most tokens that are drafted at once."""
        self._open()
        return self._n_max

    def close(self) -> None:
        """Stop drafting; the contexts stay. Closing twice does nothing."""
        if self._pointer is None:
            return
        target, draft = self._target, self._draft
        with target._lock.held():
            self._pointer = None
            if draft is not None and not draft.closed:
                with draft._lock.held():
                    self._leave(draft)
            if FROM_STATES.intersection(self._kinds) and not target.closed:
                self._settle(target, target._open())
                lib.moebind_speculative_leave(target._open(), ffi.NULL)

    def _leave(self, draft: Decoding) -> None:
        """Let the draft's context be as it was. The caller holds it."""
        native = draft._open()
        lib.moebind_hooks_follow(draft._hooks.pointer, ffi.NULL)
        lib.moebind_let_go(draft._hooks.pointer, self._target._hooks.pointer)
        draft._drafter = None
        draft._changes(range(draft._n_seq_max))
        self._settle(draft, native)
        if FROM_STATES.intersection(self._kinds):
            lib.moebind_speculative_leave(ffi.NULL, native)

    def __repr__(self) -> str:
        kinds = ", ".join(each.name for each in self._kinds)
        return "<Speculative, closed>" if self.closed else f"<Speculative {kinds}, n_max={self._n_max}>"
