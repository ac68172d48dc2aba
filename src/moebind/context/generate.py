"""The loop that generates text; ``generate_many.py`` has the one for several prompts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.arguments import explained
from moebind._core.native import CData, lib
from moebind._core.shown import shown
from moebind.context.batch import Batch
from moebind.context.draft_checks import NGRAM_NAMES, check_draft, kinds_of
from moebind.context.media import Media, MediaPrompt, has_media
from moebind.context.media_messages import is_chat, refuse_bitmaps, with_markers
from moebind.context.pieces import Piece, Pieces, Record
from moebind.context.prepare import Request, prepare
from moebind.context.scores import Score, checked_logprobs, score
from moebind.context.speculate import speculate
from moebind.context.speculative import Speculative
from moebind.context.stops import Stop, checked_limit, checked_stops
from moebind.context.unknown_arguments import refuse
from moebind.enums import SpeculativeType
from moebind.errors import BatchError, SamplerError, SpeculativeError
from moebind.sampling.sampler import Sampler, check_sampler
from moebind.sampling.settings import Settings, behind

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Never

    from moebind.mtmd.bitmap import Bitmap
    from moebind.mtmd.projector import MtmdContext

__all__ = ["Generation"]

#: What ``speculative="auto"`` is: few tokens have to match, and few are drafted, since it is measured anyway.
AUTO: dict[str, Any] = {"kind": SpeculativeType.NGRAM_SIMPLE, "n_match": 4, "n_max": 8, "auto": True}
#: How a model, and several kinds, are given.
MODELS = (
    "a model that drafts is given as Speculative(context, draft_context), several kinds as Speculative(context, "
    "kind=[...])"
)


def generate(
    context: Generation,
    request: Request,
    sampler: Sampler | None,
    seq_id: int,
    reuse_prefix: bool,
    record: Record,
) -> Iterator[Piece]:
    """See :meth:`moebind.Context.generate`, which checks the arguments."""
    lib.moebind_hooks_forget(context._hooks.pointer)
    if request.limit == 0:
        return
    writer = request.writer(context)
    step = Batch(1)
    step.extend([0], 0, seq_id, True)
    token_in, pos_in, native_step = step.token, step.pos, step._struct()
    attached = context._attached.get(seq_id)
    chooser = attached if sampler is None else sampler
    # A greedy sampler is not asked: the token with the highest logit is found without it.
    asked = None if attached is None and chooser is not None and chooser._is_greedy else chooser
    choose = context._likeliest if asked is None else partial(context._sample_with, asked)
    scores: list[Score] = []
    if request.n_top is not None:
        choose = partial(_choose_and_score, context, choose, request.n_top, scores)
    simple = asked is None and request.n_top is None
    generation, cached, token = prepare(context, request, seq_id, reuse_prefix, choose, record)
    owners = context._owners
    while True:
        piece = writer.take(token)
        yield piece._with_score(*scores.pop()) if scores else piece
        if piece.stop_reason is not None:
            return
        with context._held():
            native = context._pointer or context._open()
            if owners[seq_id] != generation:
                context._must_own(seq_id, generation)
            following = context._likeliest_after(native, native_step, token, len(cached)) if simple else None
            if following is None:
                token_in[0], pos_in[0] = token, len(cached)
                context._compute(native, native_step, 1)
                if context._attached:
                    context._remember_sequences(step)
                cached.append(token)
                following = choose(native)
            else:
                cached.append(token)
            token = following


def _choose_and_score(
    context: Generation, choose: Callable[[CData], int], n_top: int, scores: list[Score], native: CData
) -> int:
    """Choose a token, and note how likely it was. The caller holds the context."""
    token = choose(native)
    scores.append(score(context._model, context._logits(native, -1), token, n_top))
    return token


class Generation(Media):
    """A context that writes text. :class:`moebind.Context` is one."""

    @explained()
    def generate(
        self,
        /,
        prompt: str | ArrayLike | Sequence[Mapping[str, object]] | Sequence[str | Bitmap],
        *,
        mtmd: MtmdContext | None = None,
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
        seq_id: SupportsIndex = 0,
        reuse_prefix: bool = True,
        speculative: Speculative | SpeculativeType | str | None = None,
        **unknown: Never,
    ) -> Pieces:
        """Generate text, piece by piece.

        Parameters
        ----------
        prompt
            Text, token ids, or messages, which are rendered as in :meth:`chat`. Special tokens in text are recognised,
            and the tokens that the model wants at the beginning are added. Or a list of texts, pictures and sounds,
            ``[bitmap, "What is this?"]``.
        mtmd
            The projector, where the prompt has pictures or sound.
        sampler
            Chooses the tokens, and accepts those that it chose. None: what the next arguments say. Without any of them,
            the sequence's backend sampler (:meth:`set_sampler`) or, if it has none, always the likeliest token.
        max_tokens
            Stop after this many; None, or -1: when the model ends the text or the context is full.
        stop
            Texts and ids of tokens that end the generation; None: none. They, and the text after them, are left out.
            The text of a control token, such as ``"<|im_start|>"``, stands for that token.
        temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty, seed
            Short forms of a chain of samplers, not together with ``sampler``. As soon as one is given, the others are
            llama.cpp's: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, no penalties (they look at the last 64
            tokens, the prompt's too), and a random seed. They work in llama.cpp's order: penalties, top_k, top_p,
            min_p, temperature. A temperature of 0 is always the likeliest token; -1 is all candidates for ``top_k``,
            and a random ``seed``.
        json_schema, strict
            The text is JSON that satisfies it, as with :meth:`Sampler.json_schema`; without ``strict``, except for what
            a grammar cannot hold a text to, of which a warning tells.
        logprobs
            True: pieces have the ``logprob`` of their token. A number, from 1 on: and so many of the likeliest tokens
            in ``top``. They are of the model's own distribution, before anything else changes it.
        seq_id
            The sequence. What it holds beyond the prompt is removed.
        reuse_prefix
            Do not compute again the part of the prompt that the sequence's cache already begins with.
        speculative
            What drafts tokens, which the model then computes several at a time; the text stays the same. A kind of
            n-grams, such as ``"ngram-simple"``, needs no draft model; ``"auto"`` is that one, as long as it does not
            lose time.

        Returns
        -------
        Pieces
            An iterator of :class:`Piece`: token, text and index. The text never splits a character; the last piece has
            a ``stop_reason``. ``complete()`` gives all of it at once.

        Raises
        ------
        TypeError
            If ``sampler`` is given together with its short forms.
        ValueError
            If the prompt is empty, or does not fit the context.
        SpeculativeError
            If nothing can be drafted for this context.
        AbortedError
            If :meth:`abort` was called in the meantime.
        ClosedError
            In the middle, if another call took over the sequence or changed it.

        Notes
        -----
        It begins with the first piece that is asked for, and owns its sequence from then on. A later call that
        generates in the same sequence takes it over.

        Examples
        --------
        >>> for piece in context.generate("Once upon a time", max_tokens=32):
        ...     print(piece.text, end="", flush=True)
        >>> warm = context.generate("Once upon a time", temperature=0.8, max_tokens=32)
        >>> print(warm.complete())
        """
        refuse("generate", Generation.generate, unknown)
        request = self._request(
            prompt,
            Settings(temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty, seed),
            sampler=sampler,
            max_tokens=max_tokens,
            stop=stop,
            json_schema=json_schema,
            strict=strict,
            logprobs=logprobs,
            mtmd=mtmd,
        )
        return Pieces._of(*self._generate(request, seq_id, reuse_prefix, speculative))

    def _request(
        self,
        prompt: str | ArrayLike | Sequence[Mapping[str, object]] | Sequence[str | Bitmap],
        settings: Settings,
        *,
        mtmd: MtmdContext | None = None,
        sampler: Sampler | None = None,
        max_tokens: SupportsIndex | None = None,
        stop: Stop | Sequence[Stop] | None = (),
        json_schema: Mapping[str, object] | str | None = None,
        strict: bool = True,
        logprobs: bool | SupportsIndex | None = None,
        grammar: Sampler | None = None,
        preserved: frozenset[int] = frozenset(),
        more_stops: Sequence[str] = (),
        seed_offset: int = 0,
        copies: bool = False,
    ) -> Request:
        """The checked arguments of a generation.

        ``grammar`` is what it is held to. With ``copies``, it and the sampler are left as they are.
        """
        settings.alone(sampler)
        checks.boolean("strict", strict)
        limit, n_top = self._checked_choice(sampler, max_tokens, logprobs)
        stops = checked_stops(self._model, stop, preserved, more_stops)
        tokens, media = self._prompt(prompt, mtmd)
        if json_schema is not None:
            grammar = Sampler.json_schema(self._model, json_schema, strict=strict)

        def make() -> Sampler | None:
            chain = settings.sampler(tokens if media is None else tokens[tokens >= 0], seed_offset)
            chosen = sampler.clone() if copies and sampler is not None else sampler
            chosen = chosen if chain is None else chain
            if grammar is None:
                return chosen
            return behind(grammar.clone() if copies else grammar, chosen, own=copies or chain is not None)

        return Request(tokens, limit, stops, make, n_top, preserved, media)

    def _checked_choice(
        self, sampler: Sampler | None, max_tokens: SupportsIndex | None, logprobs: bool | SupportsIndex | None
    ) -> tuple[int | None, int | None]:
        """What of these does not depend on the prompt: ``max_tokens``, and how many tokens a piece's ``top`` has."""
        if sampler is not None:
            check_sampler(sampler)
            sampler._must_choose()
        return checked_limit(max_tokens), checked_logprobs(logprobs, self._model.n_vocab)

    def _generate(
        self,
        request: Request,
        seq_id: SupportsIndex,
        reuse_prefix: bool,
        speculative: Speculative | SpeculativeType | str | None,
    ) -> tuple[Iterator[Piece], Record]:
        """The pieces of a text, which is computed when they are asked for, and where to note them."""
        seq, reuse = self._seq("seq_id", seq_id), checks.boolean("reuse_prefix", reuse_prefix)
        sampler, attached = request.sampler(), self._attached.get(seq)
        if sampler is None and attached is not None:
            attached._must_choose()
        if request.n_top is not None and attached is not None:
            raise SamplerError(
                f"logprobs need the logits of sequence {seq}, which stay where its backend sampler runs: take it away "
                f"with set_sampler({seq}, None), or use another sequence"
            )
        record = Record(request.n_cells, "length" if request.limit == 0 else None)
        drafter = self._drafting_with(speculative)
        if drafter is not None:
            if request.media is not None:
                raise SpeculativeError("a prompt with pictures or sound is not drafted for: leave speculative out")
            if attached is not None:
                raise SamplerError(
                    f"sequence {seq} has a backend sampler, which chooses one token at a time: take it away with "
                    f"set_sampler({seq}, None), and give generate() a sampler"
                )
            chooses = None if sampler is not None and sampler._is_greedy else sampler
            return speculate(self, request, chooses, seq, reuse, record, drafter), record
        return generate(self, request, sampler, seq, reuse, record), record

    def _check_drafting(self, speculative: Speculative | SpeculativeType | str | None) -> None:
        """Check the argument of that name, without waiting for whoever computes.

        Raises
        ------
        TypeError, ValueError
        SpeculativeError
        """
        if speculative is None:
            return
        if isinstance(speculative, Speculative):
            if speculative.target_context is not self:
                raise SpeculativeError(
                    f"{speculative!r} drafts for another context: make one with this one as its target"
                )
            speculative._open()
            return
        if not isinstance(speculative, (str, SpeculativeType)):
            raise TypeError(
                f"speculative is {shown(speculative)}; it takes a Speculative, a kind of n-grams such as "
                f"'ngram-simple', 'auto', or None: {MODELS}"
            )
        named = AUTO["kind"] if speculative == "auto" else speculative
        try:
            kinds = kinds_of(named, "speculative", ("auto", *NGRAM_NAMES))
        except ValueError as error:
            raise ValueError(f"{error}: {MODELS}") from None
        check_draft(self, None, kinds)

    def _drafting_with(self, speculative: Speculative | SpeculativeType | str | None) -> Speculative | None:
        """What drafts, by the argument of that name. N-grams that it names are kept for the next text.

        Raises
        ------
        TypeError, ValueError
        SpeculativeError
        """
        self._check_drafting(speculative)
        if speculative is None or isinstance(speculative, Speculative):
            return speculative
        known = self._own_speculatives.get(speculative)
        if not isinstance(known, Speculative) or known.closed:
            known = Speculative(self, **AUTO) if speculative == "auto" else Speculative(self, kind=speculative)
            self._own_speculatives[speculative] = known
        return known

    def _prompt(self, prompt: Any, mtmd: MtmdContext | None) -> tuple[NDArray[np.int32], MediaPrompt | None]:
        """The tokens of a prompt; with pictures or sound, its positions and what they are."""
        media = None
        if mtmd is not None:
            self._must_fit(mtmd)
            if is_chat(prompt):
                messages, pictures = with_markers(prompt, mtmd)
                prompt = pictures.put_into(self._model.apply_chat_template(messages))
        elif is_chat(prompt):
            refuse_bitmaps(prompt)
        if has_media(prompt, mtmd):
            media = self._media_prompt(prompt, mtmd)
            tokens, n = media.tokens, media.n_cells
        else:
            tokens = self._model._prompt_tokens(prompt)
            n = tokens.size
        self._check_generates()
        self._check_length(n)
        return tokens, media

    def _check_generates(self) -> None:
        if self._encodes:
            raise BatchError("this model has no cache, so it cannot generate text: encode() gives embeddings")
        if self._predicts_ahead:
            raise BatchError(
                "this context predicts further ahead (ContextType.MTP), and cannot generate text by itself"
            )

    def _check_length(self, n_tokens: int) -> None:
        if n_tokens > self._length_max:
            parts = not self._unified and self._n_seq_max > 1 and n_tokens <= self.n_ctx
            shared = f", or with kv_unified=True, so that its {self._n_seq_max} sequences share it" if parts else ""
            raise ValueError(
                f"prompt has {n_tokens} tokens; a sequence of this context takes {self._length_max}: make it with a "
                f"larger n_ctx{shared}"
            )

    def _check_options(self, options: Mapping[str, Any]) -> None:
        """Check those arguments of :meth:`generate` that can be checked without computing anything."""
        self._check_generates()
        sampler, max_tokens, logprobs = (options.get(name) for name in ("sampler", "max_tokens", "logprobs"))
        Settings(**{each.name: options.get(each.name) for each in fields(Settings)}).alone(sampler)
        self._checked_choice(sampler, max_tokens, logprobs)
        self._seq("seq_id", options.get("seq_id", 0))
        self._check_drafting(options.get("speculative"))
        if options.get("mtmd") is not None:
            self._must_fit(options["mtmd"])
        checks.boolean("reuse_prefix", options.get("reuse_prefix", True))
