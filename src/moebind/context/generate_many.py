"""Generating text for several prompts at once: the part of ``Context`` that keeps all its sequences busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from moebind._core.native import CData, ffi, lib
from moebind.context.batch import Batch
from moebind.context.generate import Generation, Piece, Writer
from moebind.context.stops import Stop, checked_limit, checked_stops
from moebind.errors import BatchError, NoKvSlotError, SamplerError
from moebind.sampling.sampler import Sampler

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["BatchedGeneration"]


@dataclass
class _Run:
    """One prompt: its tokens, its sequence, and how far it is computed."""

    index: int
    tokens: list[int]
    writer: Writer
    #: None: always the likeliest.
    sampler: Sampler | None
    #: Its sequence while it has one.
    seq: int = -1
    #: How many of its tokens are in the cache.
    n_past: int = 0


@dataclass
class _Schedule:
    """The prompts that have a sequence, those that wait for one, and those that were not looked at yet."""

    prompts: Iterator[_Run]
    free: list[int]
    #: In the order in which they began.
    running: list[_Run] = field(default_factory=list)
    waiting: deque[_Run] = field(default_factory=deque)
    #: Whether the cache has no room for another prompt until one ends.
    full: bool = False

    def fill(self) -> None:
        """Give free sequences, which are empty, to prompts."""
        while self.free and not self.full:
            run = self.waiting.popleft() if self.waiting else next(self.prompts, None)
            if run is None:
                return
            run.seq, run.n_past = self.free.pop(), 0
            self.running.append(run)

    def leave(self, run: _Run) -> None:
        """Take the sequence back."""
        self.running.remove(run)
        self.free.append(run.seq)

    def give_up(self) -> _Run:
        """Let the prompt that began last wait: the cache is full. It is computed again from its beginning."""
        last = self.running[-1]
        self.leave(last)
        self.waiting.appendleft(last)
        self.full = True
        return last


class BatchedGeneration(Generation):
    """Generation for several prompts. :class:`moebind.Context` has it."""

    def generate_many(
        self,
        prompts: Iterable[str | ArrayLike],
        *,
        sampler: Sampler | None = None,
        max_tokens: SupportsIndex | None = None,
        stop: Stop | Sequence[Stop] = (),
    ) -> Iterator[tuple[int, Piece]]:
        """Generate text for many prompts, as many at a time as the context has sequences.

        All running prompts are computed in the same batches. When one ends, the next takes its place, and its tokens
        are computed together with those of the prompts that are still running.

        Parameters
        ----------
        prompts
            Any number of them, each as for :meth:`generate`. A list is checked as a whole first; from any other
            iterable, a prompt is taken when there is room for it.
        sampler
            Chooses the tokens; None: always the likeliest. Each prompt gets a clone of it in its present state, so that
            its text does not depend on the others.
        max_tokens
            Stop each after this many; None: when the model ends the text or its sequence is full.
        stop
            Texts and tokens that end a prompt's generation, as for :meth:`generate`.

        Yields
        ------
        tuple[int, Piece]
            The prompt's index in ``prompts``, and a piece of its text. Pieces of different prompts are interleaved;
            those of one prompt come in order. The last piece of each has a ``stop_reason``.

        Raises
        ------
        ValueError
            If a prompt is empty, or does not fit a sequence.
        SamplerError
            If the sampler does not choose, or a sequence has a backend sampler.
        AbortedError
            If :meth:`abort` was called in the meantime.
        ClosedError
            In the middle, if another call took over one of the sequences or changed it.

        Notes
        -----
        Sequences 0 to ``n_seq_max - 1`` are all used and emptied. If they share one cache (``kv_unified``) and it is
        full, the prompt that began last gives up its place and goes on later.

        Examples
        --------
        >>> texts = [""] * len(prompts)
        >>> for index, piece in context.generate_many(prompts, max_tokens=32):
        ...     texts[index] += piece.text
        """
        stops, limit = checked_stops(self._model, stop), checked_limit(max_tokens)
        if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Iterable):
            raise TypeError(f"prompts is {prompts!r}; it takes a list of prompts, or another iterable")
        if sampler is not None:
            if not isinstance(sampler, Sampler):
                raise TypeError(f"sampler is {sampler!r}; it takes a Sampler")
            sampler._must_choose()
            sampler = sampler.clone()  # as it is now, whatever is done with it later
        if self._attached:
            raise SamplerError(
                "generate_many chooses sequences by itself, but backend samplers belong to certain ones: take them "
                "away with set_sampler(seq_id, None), and give it a sampler"
            )
        if self._has_cross_attention:
            raise BatchError(
                "this model decodes what was encoded for each sequence: encode() one, and generate() from it"
            )
        self._open()
        tokenized = map(self._numbered_tokens, count(), prompts)
        known = list(tokenized) if isinstance(prompts, (Sequence, np.ndarray)) else None

        def runs() -> Iterator[_Run]:
            for at, tokens in enumerate(tokenized if known is None else known):
                writer = Writer(self._model, tokens.size, self._length_max, limit, stops)
                chooses = None if sampler is None or sampler._is_greedy else sampler.clone()
                yield _Run(at, tokens.tolist(), writer, chooses)

        return self._generate_many(iter(()) if limit == 0 else runs())

    def _numbered_tokens(self, at: int, prompt: str | ArrayLike) -> NDArray[np.int32]:
        try:
            return self._prompt_tokens(prompt)
        except (TypeError, ValueError) as error:
            raise type(error)(f"prompts[{at}]: {error}") from None

    def _generate_many(self, runs: Iterator[_Run]) -> Iterator[tuple[int, Piece]]:
        lib.moebind_hooks_forget(self._hooks.pointer)
        schedule = _Schedule(runs, list(range(self._n_seq_max))[::-1])
        batch = Batch(self._batch_room())
        everything = range(self._n_seq_max)
        with self._exclusive() as native:
            generation = self._take_over(everything)
            self._empty(native, everything)
        try:
            while True:
                schedule.fill()
                if not schedule.running:
                    return
                for run, token in self._advance(schedule, batch, generation):
                    piece = run.writer.take(token)
                    run.tokens.append(token)
                    if piece.stop_reason is not None:
                        schedule.leave(run)
                        schedule.full = False
                        self._forget_sequences([run.seq], generation)
                    yield run.index, piece
        finally:
            if not self.closed:
                self._forget_sequences(everything, generation)

    def _batch_room(self) -> int:
        """How many tokens a batch can have, whichever they are."""
        with self._exclusive() as native:
            room = self._n_batch
            if not lib.llama_get_causal_attn(native) or self._pools_wholes(native):
                room = min(room, self.n_ubatch)
            if self._embeddings:  # every token is an output
                room = min(room, self._n_outputs_max)
            return room

    def _advance(self, schedule: _Schedule, batch: Batch, generation: int) -> list[tuple[_Run, int]]:
        """Compute one batch; returns the next token of each prompt that was computed to its end."""
        while True:
            parts = _pack(schedule.running, batch)
            ends = [(run, at) for run, _, at in parts if at is not None]
            try:
                with self._exclusive() as native:
                    for seq in range(self._n_seq_max):
                        self._must_own(seq, generation)
                    n_outputs = batch.n_tokens if self._embeddings else len(ends)
                    self._compute(native, batch._struct(), n_outputs)
                    self._flags = batch.logits.copy()
                    tokens = self._choose(native, ends)
            except NoKvSlotError:
                if len(schedule.running) == 1:
                    raise
                self._forget_sequences([schedule.give_up().seq], generation)
                continue
            for run, n, _ in parts:
                run.n_past += n
            return [(run, token) for (run, _), token in zip(ends, tokens, strict=True)]

    def _choose(self, native: CData, ends: list[tuple[_Run, int]]) -> list[int]:
        """A token for each of these outputs. The caller holds the context."""
        if not ends:
            return []
        if ends[0][0].sampler is not None:
            return [self._sample_with(run.sampler, native, at) for run, at in ends if run.sampler is not None]
        shape = self._n_outputs, self._model._n_vocab
        memory = ffi.buffer(lib.llama_get_logits(native), 4 * shape[0] * shape[1])
        logits = np.frombuffer(memory, np.float32).reshape(shape)
        if self._embeddings:
            logits = logits[[at for _, at in ends]]
        if self._suppress is not None:
            logits = logits.copy()
            logits[:, self._suppress] = -np.inf
        chosen: list[int] = logits.argmax(axis=1).tolist()
        return chosen

    def _forget_sequences(self, seq_ids: Iterable[int], generation: int) -> None:
        """Empty those of these sequences that still belong to the generation."""
        with self._exclusive() as native:
            self._empty(native, [seq for seq in seq_ids if self._owners[seq] == generation])

    def _empty(self, native: CData, seq_ids: Iterable[int]) -> None:
        for seq in seq_ids:
            self._history.pop(seq, None)
            lib.llama_memory_seq_rm(lib.llama_get_memory(native), seq, -1, -1)


def _pack(running: list[_Run], batch: Batch) -> list[tuple[_Run, int, int | None]]:
    """Fill the batch with what is to be computed next: single tokens first, then as much of the prompts as fits.

    Returns each prompt in it, how many of its tokens, and where the last one of them is, if it has an output.
    """
    at, parts = 0, list[tuple[_Run, int, "int | None"]]()
    batch._logits[:] = 0
    for run in sorted(running, key=lambda run: len(run.tokens) - run.n_past):
        tokens = run.tokens[run.n_past : run.n_past + batch.capacity - at]
        if not tokens:
            break
        end = at + len(tokens)
        batch._token[at:end] = tokens
        batch._pos[at:end] = range(run.n_past, run.n_past + len(tokens))
        batch._seq_id[at:end, 0] = run.seq
        complete = run.n_past + len(tokens) == len(run.tokens)
        batch._logits[end - 1] = complete
        parts.append((run, len(tokens), end - 1 if complete else None))
        at = end
    batch._n_tokens = at
    return parts
