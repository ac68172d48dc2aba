"""Generating text for several prompts at once: the part of ``Context`` that keeps all its sequences busy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.native import CData, ffi, lib
from moebind._core.shown import shown
from moebind.context.batch import Batch
from moebind.context.draft_many import ManyDrafts
from moebind.context.generate import Generation
from moebind.context.media import has_media
from moebind.context.pieces import Completion, Piece, Record
from moebind.context.prepare import Request
from moebind.context.schedule import Run, Schedule, pack
from moebind.context.scores import Score, score
from moebind.context.speculate import choose_drafted
from moebind.context.stops import Stop, checked_stops
from moebind.context.unknown_arguments import refuse
from moebind.errors import BatchError, NoKvSlotError, SamplerError
from moebind.sampling.sampler import Sampler
from moebind.sampling.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Never, Self

    from moebind.context.speculative import Speculative
    from moebind.enums import SpeculativeType

__all__ = ["BatchedGeneration", "NumberedPieces"]

#: What a prompt's dict may have besides ``"prompt"``.
_SHORT_FORMS = tuple(Settings.__dataclass_fields__)
_OWN = ("sampler", "max_tokens", "stop", *_SHORT_FORMS, "json_schema", "strict", "logprobs")


class _Requests(Iterator[Request]):
    """What is asked for: checked one by one, when there is room for it, or all at once before anything is computed."""

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests = requests

    def __next__(self) -> Request:
        return next(self._requests)

    def check_all(self) -> None:
        self._requests = iter(list(self._requests))


class NumberedPieces(Iterator[tuple[int, Piece]]):
    """The texts of many prompts while they are generated: an iterator of indices and pieces.

    Made by ``Context.generate_many``.

    Examples
    --------
    >>> for completion in context.generate_many(prompts, max_tokens=32).complete():
    ...     print(completion.text)
    """

    _runs: Iterator[tuple[Run, Piece | None]]
    _requests: _Requests
    _records: dict[int, Record]
    _began: bool

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("pieces of many prompts are made by Context.generate_many(prompts)")

    @classmethod
    def _of(cls, runs: Iterator[tuple[Run, Piece | None]], requests: _Requests) -> Self:
        made = cls.__new__(cls)
        made._runs, made._requests, made._records, made._began = runs, requests, {}, False
        return made

    def __next__(self) -> tuple[int, Piece]:
        self._began = True
        while True:
            run, piece = next(self._runs)
            if piece is not None:
                return run.index, piece

    def complete(self) -> list[Completion]:
        """Generate everything, and return a :class:`Completion` for each prompt, in their order.

        All prompts are taken and checked before anything is computed. If something else ends it, such as Ctrl-C or
        :meth:`Context.abort`, :attr:`completed` has the texts that were complete by then.

        Raises
        ------
        RuntimeError
            If a piece was taken already: pieces are not kept.
        ValueError, TypeError, SamplerError
            As :meth:`Context.generate_many`, which has checked the prompts of a list already.
        """
        if self._began:
            raise RuntimeError("pieces of these prompts were taken already, and are not kept: ask for all or nothing")
        self._began = True
        self._requests.check_all()
        for run, piece in self._runs:
            self._records[run.index] = run.record
            if piece is not None:
                run.record.pieces.append(piece)
        return list(self.completed.values())

    @property
    def completed(self) -> dict[int, Completion]:
        """The texts that are complete, by the indices of their prompts. They are kept in :meth:`complete` only."""
        return {
            index: record.completion()
            for index, record in sorted(self._records.items())
            if record.stop_reason is not None
        }

    def close(self) -> None:
        """End it: nothing more is generated, and the sequences are emptied. Closing twice does nothing."""
        self._runs.close()  # type: ignore[attr-defined]  # a generator

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class BatchedGeneration(Generation):
    """Generation for several prompts. :class:`moebind.Context` has it."""

    def generate_many(
        self,
        prompts: Iterable[str | ArrayLike | Sequence[Mapping[str, object]] | Mapping[str, Any]],
        *,
        sampler: Sampler | None = None,
        max_tokens: SupportsIndex | None = None,
        stop: Stop | Sequence[Stop] | None = (),
        temperature: float | None = None,
        top_k: SupportsIndex | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        seed: SupportsIndex | None = None,
        json_schema: Mapping[str, object] | str | None = None,
        strict: bool = True,
        logprobs: bool | SupportsIndex | None = None,
        speculative: Speculative | SpeculativeType | str | None = None,
        **unknown: Never,
    ) -> NumberedPieces:
        """Generate text for many prompts, as many at a time as the context has sequences.

        All running prompts are computed in the same batches. When one ends, the next takes its place, and its tokens
        are computed together with those of the prompts that are still running. What prompts have in common at their
        beginning is computed once, as far as the model's memory can copy it.

        Parameters
        ----------
        prompts
            Any number of them, each as for :meth:`generate`; or a dict with ``"prompt"`` and any of the arguments
            below, which then hold for this prompt instead of those for all. A list is checked as a whole first, so that
            a bad prompt costs no text; from any other iterable, a prompt is taken when there is room for it, unless
            ``complete()`` asks for all.
        sampler
            Chooses the tokens; None: what the short forms say, or always the likeliest. Each prompt gets a clone of it
            in its present state, so that its text does not depend on the others; copies of a prompt get the same text.
        max_tokens, stop, temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty, \
        json_schema, strict, logprobs
            For each prompt, as for :meth:`generate`.
        seed
            As for :meth:`generate`, for the first prompt; the one with index ``i`` has the seed ``seed + i``. So copies
            of a prompt get different texts, and all of it comes again with the same seed. In a prompt's own dict,
            it is the prompt's seed.
        speculative
            As for :meth:`generate`, for all prompts.

        Returns
        -------
        NumberedPieces
            An iterator of ``(index, piece)``: the prompt's index in ``prompts``, and a piece of its text. Pieces of
            different prompts are interleaved; those of one prompt come in order. The last piece of each has a
            ``stop_reason``. ``complete()`` gives all of it at once, as a list of :class:`Completion`.

        Raises
        ------
        ValueError
            If a prompt is empty, or does not fit a sequence.
        TypeError
            If a prompt's dict has other keys, or ``sampler`` is given together with its short forms.
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
        >>> best_of_four = context.generate_many([prompt] * 4, temperature=0.8, seed=1, max_tokens=32).complete()
        >>> context.generate_many([{"prompt": "Yes or no?", "max_tokens": 1}, "Once upon a time"], max_tokens=64)
        """
        refuse("generate_many", BatchedGeneration.generate_many, unknown)
        if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
            raise TypeError(f"prompts is {shown(prompts)}; it takes a list of prompts, or another iterable")
        common: dict[str, Any] = {
            "sampler": sampler,
            "max_tokens": max_tokens,
            "stop": stop,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "seed": seed,
            "json_schema": json_schema,
            "strict": checks.boolean("strict", strict),
            "logprobs": logprobs,
        }
        _settings(common).alone(sampler)
        self._checked_choice(sampler, max_tokens, logprobs)
        checked_stops(self._model, stop)
        if sampler is not None:
            common["sampler"] = sampler.clone()  # as it is now, whatever is done with it later
        if json_schema is not None:
            common["json_schema"] = Sampler.json_schema(self._model, json_schema, strict=strict)
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
        drafter = self._drafting_with(speculative)
        requests = _Requests(self._numbered_request(at, prompt, common) for at, prompt in zip(count(), prompts))
        if isinstance(prompts, (Sequence, np.ndarray)):
            requests.check_all()

        def runs() -> Iterator[Run]:
            for at, request in enumerate(requests):
                chooses = request.sampler()
                if chooses is not None and chooses._is_greedy:
                    chooses = None
                record = Record(request.tokens.size, "length" if request.limit == 0 else None)
                yield Run(at, request, request.writer(self), chooses, record, request.tokens.tolist())

        return NumberedPieces._of(self._generate_many(runs(), drafter), requests)

    def _numbered_request(self, at: int, prompt: Any, common: dict[str, Any]) -> Request:
        """The arguments of one prompt, its own before those for all."""
        own: dict[str, Any] = {}
        if isinstance(prompt, Mapping):
            own = dict(prompt)
            unknown = [name for name in own if name != "prompt" and name not in _OWN]
            if unknown or "prompt" not in own:
                wrong = f"has {shown(unknown[0])}" if unknown else "has no 'prompt'"
                hint = "; a chat is a list of messages" if {"role", "content"} & own.keys() else ""
                raise TypeError(f"prompts[{at}] {wrong}: a prompt's dict takes 'prompt' and {', '.join(_OWN)}{hint}")
            prompt = own.pop("prompt")
        if has_media(prompt, None):
            raise ValueError(f"prompts[{at}] has pictures or sound, which are for one text at a time: generate()")
        taken = {**common, **own}
        # What one prompt says of choosing is in the place of what is said for all.
        if own.get("sampler") is not None:
            taken |= {name: own.get(name) for name in _SHORT_FORMS}
        elif any(own.get(name) is not None for name in _SHORT_FORMS):
            taken["sampler"] = None
        if own.get("sampler") is not None and isinstance(own["sampler"], Sampler):
            taken["sampler"] = own["sampler"].clone()
        schema = taken["json_schema"]
        try:
            return self._request(
                prompt,
                _settings(taken),
                sampler=taken["sampler"],
                max_tokens=taken["max_tokens"],
                stop=taken["stop"],
                logprobs=taken["logprobs"],
                json_schema=None if isinstance(schema, Sampler) else schema,
                strict=taken["strict"],
                grammar=schema if isinstance(schema, Sampler) else None,
                seed_offset=0 if own.get("seed") is not None else at,
                copies=True,
            )
        except (TypeError, ValueError, SamplerError) as error:
            error.args = (f"prompts[{at}]: {error}", *error.args[1:])
            raise

    def _generate_many(
        self, runs: Iterator[Run], speculative: Speculative | None
    ) -> Iterator[tuple[Run, Piece | None]]:
        lib.moebind_hooks_forget(self._hooks.pointer)
        batch = Batch(self._batch_room())
        everything = range(self._n_seq_max)
        drafts = ManyDrafts(self, speculative)
        with self._exclusive() as native:
            # Without causal attention, what comes later changes what came before.
            shares = bool(lib.llama_get_causal_attn(native)) and not drafts.follows
            window = int(lib.llama_model_n_swa(self._model._open()))
            schedule = Schedule(runs, self._n_seq_max, self._unified, self.n_ctx_seq, shares, window)
            generation = self._take_over(everything)
            self._empty(native, everything)
        try:
            while True:
                with self._exclusive() as native:
                    self._must_own_all(generation)
                    nothing = schedule.fill(lib.llama_get_memory(native))
                    drafts.settle(schedule.running)
                for run in nothing:
                    yield run, None
                if not schedule.running:
                    return
                for run, pieces in self._advance(schedule, batch, generation, drafts):
                    if pieces[-1].stop_reason is not None:
                        schedule.leave(run)
                        schedule.full = False
                    for piece in pieces:
                        yield run, piece
        finally:
            if not self.closed:
                self._forget_sequences(everything, generation)

    def _must_own_all(self, generation: int) -> None:
        for seq in range(self._n_seq_max):
            self._must_own(seq, generation)

    def _batch_room(self) -> int:
        """How many tokens a batch can have, whichever they are."""
        with self._exclusive() as native:
            room = self._n_batch
            if not lib.llama_get_causal_attn(native) or self._pools_wholes(native):
                room = min(room, self.n_ubatch)
            if self._embeddings:  # every token is an output
                room = min(room, self._n_outputs_max)
            return room

    def _advance(
        self, schedule: Schedule, batch: Batch, generation: int, drafts: ManyDrafts
    ) -> list[tuple[Run, list[Piece]]]:
        """Compute one batch; returns the next pieces of each prompt that was computed to its end."""
        running, may_draft = schedule.running, True
        while True:
            try:
                with self._exclusive() as native, drafts.measured(running):
                    self._must_own_all(generation)
                    drafted = drafts.draft(running, batch.capacity) if may_draft else False
                    parts = pack(running, batch)
                    ends = [(run, at) for run, _, at in parts if at is not None]
                    n_outputs = batch.n_tokens if self._embeddings else int(batch.logits.sum())
                    self._compute(native, batch._struct(), n_outputs)
                    self._flags = batch.logits.copy()
                    for run, n, _ in parts:
                        run.n_past += n
                    drafts.computed(batch)
                    # Now, while the sequence of each prompt that others wait for is no longer than their prefix.
                    schedule.hand_on(lib.llama_get_memory(native))
                    return self._choose(native, ends, drafts)
            except NoKvSlotError:
                if may_draft and drafted:
                    may_draft = False
                    for run in running:
                        run.drafted = []
                    continue
                if len(running) == 1:
                    raise
                self._forget_sequences([schedule.give_up().seq], generation)

    def _choose(self, native: CData, ends: list[tuple[Run, int]], drafts: ManyDrafts) -> list[tuple[Run, list[Piece]]]:
        """The pieces that come after these outputs, and after what was drafted. The caller holds the context."""
        if not ends:
            return []
        places = [at + index for run, at in ends for index in range(len(run.drafted) + 1)]
        logits = self._logits_of(native, places)
        likeliest = self._likeliest_of(logits) if any(run.sampler is None for run, _ in ends) else []
        rows = {place: row for row, place in enumerate(places)}
        chosen: list[tuple[Run, list[Piece]]] = []
        for run, at in ends:

            def choose(native: CData, place: int, run: Run = run) -> tuple[int, Score | None]:
                row, n_top = rows[place], run.request.n_top
                token = likeliest[row] if run.sampler is None else self._sample_with(run.sampler, native, place)
                return token, None if n_top is None else score(self._model, logits[row], token, n_top)

            pieces, error = choose_drafted(native, choose, run.writer, run.drafted, at)
            if error is not None:
                raise error
            drafts.chosen(native, run, len(pieces) - 1)
            run.tokens += [piece.token for piece in pieces]
            chosen.append((run, pieces))
        return chosen

    def _logits_of(self, native: CData, places: list[int]) -> NDArray[np.float32]:
        """The logits of these tokens of the batch: all that have outputs."""
        shape = self._n_outputs, self._model._n_vocab
        memory = ffi.buffer(lib.llama_get_logits(native), 4 * shape[0] * shape[1])
        logits = np.frombuffer(memory, np.float32).reshape(shape)
        return logits[places] if self._embeddings else logits

    def _likeliest_of(self, logits: NDArray[np.float32]) -> list[int]:
        if self._suppress is not None:
            logits = logits.copy()
            logits[:, self._suppress] = -np.inf
        likeliest: list[int] = logits.argmax(axis=1).tolist()
        return likeliest

    def _forget_sequences(self, seq_ids: Iterable[int], generation: int) -> None:
        """Empty those of these sequences that still belong to the generation."""
        with self._exclusive() as native:
            self._empty(native, [seq for seq in seq_ids if self._owners[seq] == generation])

    def _empty(self, native: CData, seq_ids: Iterable[int]) -> None:
        for seq in seq_ids:
            self._history.pop(seq, None)
            lib.llama_memory_seq_rm(lib.llama_get_memory(native), seq, -1, -1)


def _settings(taken: Mapping[str, Any]) -> Settings:
    return Settings(**{name: taken[name] for name in _SHORT_FORMS})
