"""Generating text for several prompts at once: the part of ``Context`` that keeps all its sequences busy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.native import lib
from moebind._core.shown import shown
from moebind.context.generate import Generation
from moebind.context.media import has_media
from moebind.context.pieces import Completion, Piece, Record
from moebind.context.prepare import Request
from moebind.context.schedule import Run
from moebind.context.stepping import Steps
from moebind.context.stops import Stop, checked_stops
from moebind.context.unknown_arguments import refuse
from moebind.errors import BatchError, SamplerError
from moebind.sampling.sampler import Sampler
from moebind.sampling.settings import Settings

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import ArrayLike
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

    def __repr__(self) -> str:
        return "<NumberedPieces: loop over indices and pieces, or .complete() gives all texts>"

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
        >>> copies = context.generate_many([prompt] * 4, temperature=0.8, max_tokens=32)
        >>> texts = [completion.text for completion in copies.complete()]
        >>> mixed = [{"prompt": "Yes or no?", "max_tokens": 1}, "Once upon a time"]
        >>> completions = context.generate_many(mixed, max_tokens=64).complete()
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

        runs = (Run.of(at, request, self, drafter) for at, request in enumerate(requests))
        return NumberedPieces._of(self._generate_many(runs, drafter), requests)

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
        steps = Steps(self, runs, speculative)
        try:
            while True:
                for run in steps.fill():
                    yield run, None
                if not steps.schedule.running:
                    return
                for progress in steps.advance():
                    for piece in progress.pieces:
                        yield progress.run, piece
                    error = progress.taken_error()
                    if error is not None:
                        raise error
        finally:
            error = None  # its traceback leads back here, and to all that its reader has
            steps.close()


def _settings(taken: Mapping[str, Any]) -> Settings:
    return Settings(**{name: taken[name] for name in _SHORT_FORMS})
