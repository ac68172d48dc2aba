"""What is drafted for which sequence, and what the draft's context knows of each.

A draft model has a cache of its own, which follows the target's. A model that drafts from text alone catches up when it
is asked. One that drafts from hidden states has to look after each computation of the target; what it has missed is
computed again, at the beginning of the next text.

The caller holds the target's context in everything here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from moebind._core.native import CData, ffi, lib
from moebind.backend import rpc_servers
from moebind.context.batch import Batch
from moebind.context.draft_checks import FROM_STATES
from moebind.context.prepare import common_prefix
from moebind.errors import AbortedError, DecodeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moebind.context.decode import Decoding
    from moebind.enums import SpeculativeType

__all__ = ["DraftModel", "Drafting", "Wanted"]

#: So many tokens that a draft model has missed are a prompt, and not those of some steps.
PROMPT_MIN = 16


@dataclass
class Wanted:
    """A draft that is asked for: the sequence, its tokens in the target's cache, the next one, and how many more."""

    seq: int
    tokens: list[int]
    last: int
    n_max: int
    #: The tokens that were drafted.
    drafted: list[int] = field(default_factory=list)


class Drafting:
    """Drafts from n-grams, which have no context of their own.

    Parameters
    ----------
    target
        The context that it drafts for.
    opened
        Gives what drafts natively, or raises when it was closed.
    """

    #: Whether it looks at each computation of the target.
    follows = False
    #: Whether it can begin in the middle of a text at no cost.
    anytime = True
    #: Microseconds that it took to compute prompts itself.
    t_prompt_us = 0

    def __init__(self, target: Decoding, opened: Callable[[], CData]) -> None:
        self._target, self._opened = target, opened
        #: How many tokens of each sequence were told to llama-common.
        self._told = [0] * self._target._n_seq_max
        #: How long the last draft of each was.
        self.last_drafted = [0] * self._target._n_seq_max

    def keep(self, seq: int, tokens: NDArray[np.int32], n: int) -> int:
        """A text begins, of which the target has ``n`` tokens; how many of them need not be computed again."""
        return n

    def known(self, seq: int) -> Sequence[int]:
        """The tokens of a sequence that were seen."""
        return ()

    def begin(self, seq: int, tokens: Sequence[int]) -> None:
        """The prompt is computed."""
        numbers = ffi.new("llama_token[]", list(tokens))
        lib.moebind_speculative_begin(self._opened(), seq, numbers, len(tokens))
        self._told[seq] = len(tokens)

    def keep_first(self, seq: int, n: int) -> None:
        """Nothing comes after so many tokens of a sequence any more."""

    def forget(self, seq: int) -> None:
        """Something went wrong with a sequence, and nothing is known of what there is of it."""

    def computed(self, batch: Batch) -> None:
        """The target has computed this batch."""

    def draft(self, wanted: Sequence[Wanted]) -> None:
        """Draft for some sequences, as many tokens as each is to have at most."""
        asked = ffi.new("struct moebind_draft[]", len(wanted))
        alive = []
        for native, each in zip(asked, wanted, strict=True):
            told = min(self._told[each.seq], len(each.tokens))
            new = ffi.new("llama_token[]", each.tokens[told:])
            room = ffi.new("llama_token[]", each.n_max)
            alive += [new, room]
            native.seq_id, native.last, native.n_max = each.seq, each.last, each.n_max
            native.n_kept, native.tokens, native.n_tokens, native.drafted = told, new, len(new), room
        lib.moebind_speculative_draft(self._opened(), asked, len(wanted))
        for native, each in zip(asked, wanted, strict=True):
            self._told[each.seq] = len(each.tokens)
            each.drafted = list(native.drafted[0 : native.n_drafted])
            self.last_drafted[each.seq] = len(each.drafted)

    def accept(self, seq: int, n: int, n_cached: int) -> None:
        """So many tokens of a draft were right; the target's cache holds ``n_cached`` of the sequence now."""
        lib.moebind_speculative_accept(self._opened(), seq, n)


class DraftModel(Drafting):
    """Drafts with a model, whose context has a cache that follows the target's.

    Parameters
    ----------
    target, opened
        As for :class:`Drafting`.
    draft
        The model's context.
    kinds
        Who drafts.
    """

    def __init__(
        self, target: Decoding, opened: Callable[[], CData], draft: Decoding, kinds: Sequence[SpeculativeType]
    ) -> None:
        super().__init__(target, opened)
        self._draft = draft
        self.anytime = False
        self.follows = bool(FROM_STATES.intersection(kinds))
        #: Whether the draft has no cache of its own, but reads the target's.
        self._shares = draft._model._architecture == "gemma4-assistant"
        n_seq = draft._n_seq_max
        #: Tokens that the cache holds, of each sequence, and how many of them are known to be those of the text.
        self._known: list[list[int]] = [[] for _ in range(n_seq)]
        self._same = [0] * n_seq
        #: The numbers under which sequences of the draft's context belong to this; 0: none.
        self._owned = [0] * n_seq

    def keep(self, seq: int, tokens: NDArray[np.int32], n: int) -> int:
        """As :meth:`Drafting.keep`."""
        if self._shares:
            return n
        with self._held() as native:
            known = self._known_of(seq)
            self._cut(native, seq, min(common_prefix(np.array(known, np.int32), tokens), n))
            self._same[seq] = len(known)
            return len(known) if self.follows else n

    def known(self, seq: int) -> Sequence[int]:
        """As :meth:`Drafting.known`."""
        with self._held():
            return tuple(self._known_of(seq))

    def keep_first(self, seq: int, n: int) -> None:
        """Forget what comes after so many tokens: the target has computed others in their place."""
        with self._held() as native:
            if len(self._known_of(seq)) > n:
                self._cut(native, seq, n)

    def begin(self, seq: int, tokens: Sequence[int]) -> None:
        """As :meth:`Drafting.begin`."""
        with self._held():
            super().begin(seq, tokens)

    def forget(self, seq: int) -> None:
        """As :meth:`Drafting.forget`."""
        self._owned[seq] = 0

    def computed(self, batch: Batch) -> None:
        """As :meth:`Drafting.computed`: look at the hidden states."""
        if not self.follows:
            return
        of_token = batch._first_sequences()
        sequences = set(of_token.tolist())
        followed = False
        with self._held():
            for seq in sequences:
                self._known_of(seq).extend(batch.token[of_token == seq].tolist())
            try:
                followed = bool(lib.moebind_speculative_process(self._opened(), batch._struct()))
            finally:
                if not followed:
                    for seq in sequences:
                        self.forget(seq)
        self._stop_if_asked()

    def draft(self, wanted: Sequence[Wanted]) -> None:
        """As :meth:`Drafting.draft`."""
        with self._held() as native:
            able = [each for each in wanted if self._catch_up(native, each)]
            try:
                if able:
                    super().draft(able)
            except BaseException:
                for each in able:
                    self.forget(each.seq)
                raise
            for each in able:
                self._settle(native, each)
        self._stop_if_asked()

    def accept(self, seq: int, n: int, n_cached: int) -> None:
        """As :meth:`Drafting.accept`."""
        with self._held() as native:
            super().accept(seq, n, n_cached)
            if self.follows:
                self._cut(native, seq, n_cached)

    def _catch_up(self, native: CData, wanted: Wanted) -> bool:
        """Have the cache hold the text, if it can be had; the caller holds the draft's context."""
        draft, seq, tokens = self._draft, wanted.seq, wanted.tokens
        known = self._known_of(seq)
        if self.follows:
            return self._shares or len(known) == len(tokens)
        same = min(self._same[seq], len(known))
        while same < min(len(known), len(tokens)) and known[same] == tokens[same]:
            same += 1
        self._cut(native, seq, same)
        missing = tokens[len(known) :]
        # Vocabularies that are taken for the same may differ in length.
        if max([wanted.last, *missing]) >= draft._model.n_vocab:
            return False
        n_batch, began = draft._n_batch, lib.llama_time_us()
        for start in range(0, len(missing), n_batch):
            part = missing[start : start + n_batch]
            batch = Batch(len(part))
            batch.extend(part, len(known), seq, False)
            batch.logits[-1] = True
            try:
                draft._compute(native, batch._struct(), 1)
            except AbortedError:
                self.forget(seq)
                lib.moebind_hooks_forget(self._target._hooks.pointer)
                raise
            except DecodeError:  # it has no room, for one
                self.forget(seq)
                return False
            except BaseException:
                self.forget(seq)
                raise
            known.extend(part)
        if len(missing) > PROMPT_MIN:
            self.t_prompt_us += lib.llama_time_us() - began
        self._same[seq] = len(tokens)
        return True

    def _settle(self, native: CData, wanted: Wanted) -> None:
        """Note what a draft left in the draft's cache; the caller holds it."""
        seq, known = wanted.seq, self._known[wanted.seq]
        if self.follows:
            # What it drafted is computed again, from the target's hidden states.
            self._cut(native, seq, len(wanted.tokens))
            return
        last = int(lib.llama_memory_seq_pos_max(lib.llama_get_memory(native), seq))
        known.extend([wanted.last, *wanted.drafted][: max(last + 1 - len(known), 0)])
        self._cut(native, seq, len(known))

    # --- the draft's context ---

    def _known_of(self, seq: int) -> list[int]:
        """The tokens that the cache holds of a sequence, which is emptied if another call has changed it."""
        draft, known = self._draft, self._known[seq]
        if not self._owned[seq] or draft._owners[seq] != self._owned[seq]:
            if not self._shares:
                lib.llama_memory_seq_rm(lib.llama_get_memory(draft._open()), seq, -1, -1)
            draft._history.pop(seq, None)
            self._owned[seq] = draft._take_over([seq])
            known.clear()
            self._same[seq] = 0
        return known

    def _cut(self, native: CData, seq: int, n: int) -> None:
        """Leave the first n tokens of a sequence in the draft's cache; none, where its memory cannot do that."""
        known = self._known[seq]
        del known[n:]
        if not self._shares and not lib.llama_memory_seq_rm(lib.llama_get_memory(native), seq, n, -1):
            lib.llama_memory_seq_rm(lib.llama_get_memory(native), seq, -1, -1)
            known.clear()

    @contextmanager
    def _held(self) -> Iterator[CData]:
        """Hold the draft's context."""
        draft = self._draft
        with draft._lock.held(), rpc_servers.watched(draft._servers):
            native = draft._open()
            draft._reserve_outputs(native, max(draft._n_outputs_max, draft._n_seq_max))
            yield native

    def _stop_if_asked(self) -> None:
        if lib.moebind_hooks_aborted(self._target._hooks.pointer):
            self._target._raise_decode_error(2, 0)
