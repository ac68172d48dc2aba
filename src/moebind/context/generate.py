"""The loop that generates text; ``generate_many.py`` has the one for several prompts at once."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, SupportsIndex

import numpy as np

from moebind._core import checks
from moebind._core.native import CData, ffi, lib
from moebind.context.batch import Batch
from moebind.context.decode import Decoding
from moebind.context.stops import Stop, Stops, StopStrings, checked_limit, checked_stops
from moebind.errors import BatchError
from moebind.model.prompts import Prompts
from moebind.model.vocab import PIECE_BYTES, Vocabulary
from moebind.sampling.sampler import Sampler

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


__all__ = ["Generation", "Piece", "StopReason", "StopStrings"]

StopReason = Literal["eog", "stop", "length", "context"]


@dataclass(frozen=True)
class Piece:
    """A piece of generated text.

    Attributes
    ----------
    token : int
        The token that was generated.
    text : str
        The text that can be shown now. It may be empty while a character is incomplete, or while the text may be the
        beginning of a stop string.
    index : int
        How many tokens were generated before this one.
    stop_reason : str or None
        Why the text ends, on the last piece: ``"eog"`` (the model ended it), ``"stop"`` (a stop string or token came),
        ``"length"`` (``max_tokens`` was reached) or ``"context"`` (the context is full).
    stop : str, int or None
        Which stop came, as it was given; None unless ``stop_reason`` is ``"stop"``.
    """

    token: int
    text: str
    index: int
    stop_reason: StopReason | None = None
    stop: Stop | None = None


class Writer:
    """Turns the tokens of one sequence into pieces, up to the one that ends it.

    Parameters
    ----------
    model
        Whose tokens they are.
    n_prompt
        How many tokens the prompt has.
    length_max
        How many tokens a sequence can have.
    max_tokens
        As for :meth:`moebind.Context.generate`.
    stops
        What ends it.
    shown
        Special tokens whose text is given out.
    """

    __slots__ = (
        "_bytes",
        "_decode",
        "_held",
        "_index",
        "_last",
        "_limit",
        "_model",
        "_shown",
        "_stops",
        "_text",
        "_vocab",
    )

    def __init__(
        self,
        model: Vocabulary,
        n_prompt: int,
        length_max: int,
        max_tokens: int | None,
        stops: Stops,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._model, self._vocab = model, model._usable_vocab()
        self._text = ffi.new("char[]", PIECE_BYTES)
        self._bytes = ffi.buffer(self._text)
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = StopStrings(stops.texts)
        self._stops = stops.tokens
        self._index = 0
        self._shown = shown
        #: The index of the last token that the context has room to go on from, and of the last that was asked for.
        self._last = length_max - n_prompt
        self._limit = math.inf if max_tokens is None else max_tokens - 1

    def take(self, token: int) -> Piece:
        """The piece of the token that comes next."""
        index = self._index
        self._index = index + 1
        special = token in self._shown
        length = lib.moebind_next_piece(self._vocab, token, special, self._text, PIECE_BYTES)
        if length == lib.MOEBIND_END_OF_GENERATION:
            return Piece(token, self._rest(), index, "eog")
        if token in self._stops:
            return Piece(token, self._rest(), index, "stop", self._stops[token])
        piece = self._bytes[:length] if length >= 0 else self._model._piece(self._vocab, token, special)
        text, stopped = self._held.add(self._decode(piece))
        if stopped:
            return Piece(token, text, index, "stop", self._held.came)
        if index >= self._limit:
            return Piece(token, text + self._rest(), index, "length")
        if index >= self._last:
            return Piece(token, text + self._rest(), index, "context")
        return Piece(token, text, index)

    def _rest(self) -> str:
        return self._held.flush() + self._decode(b"", True)


def common_prefix(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many tokens two arrays begin with alike."""
    n = min(a.size, b.size)
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if differ.size else n


def prepare(
    context: Decoding,
    tokens: NDArray[np.int32],
    seq_id: int,
    reuse_prefix: bool,
    choose: Callable[[CData], int],
) -> tuple[int, list[int], int]:
    """Take over a sequence and bring the prompt into its cache.

    Returns the number of this generation, what the cache holds, and the token that is chosen to follow.
    """
    with context._exclusive() as native:
        history = context._history.pop(seq_id, None)
        generation = context._take_over([seq_id])
        memory = lib.llama_get_memory(native)
        keep = 0
        first = lib.llama_memory_seq_pos_min(memory, seq_id)
        if reuse_prefix and history is not None and first >= 0:
            cached = lib.llama_memory_seq_pos_max(memory, seq_id) + 1
            # The last token is decoded in any case, for its logits.
            keep = min(common_prefix(np.array(history, np.int32), tokens), cached, tokens.size - 1)
            # Without swa_full, positions before a sliding window are dropped, and none between the first and the last:
            # what comes next must see a whole window.
            window = lib.llama_model_n_swa(context._model._open())
            if first > 0 and (not window or first > keep - window):
                keep = 0
        if not lib.llama_memory_seq_rm(memory, seq_id, keep, -1):
            keep = 0  # this memory can only forget a whole sequence
            lib.llama_memory_seq_rm(memory, seq_id, -1, -1)
    n_batch = context.n_batch
    for start in range(keep, tokens.size, n_batch):
        part = tokens[start : start + n_batch]
        batch = Batch(part.size)
        batch.extend(part, start, seq_id, False)
        batch.logits[-1] = start + part.size == tokens.size
        with context._exclusive() as native:
            context._must_own(seq_id, generation)
            context._decode(native, batch)
            if start + n_batch < tokens.size:
                continue
            context._history[seq_id] = held = tokens.tolist()
            # Before anybody else computes something here: the logits are those of the last batch.
            return generation, held, choose(native)
    raise AssertionError("a prompt has tokens")


def generate(
    context: Generation,
    tokens: NDArray[np.int32],
    *,
    sampler: Sampler | None,
    max_tokens: int | None,
    stops: Stops,
    seq_id: int,
    reuse_prefix: bool,
    shown: frozenset[int],
) -> Iterator[Piece]:
    """See :meth:`moebind.Context.generate`, which checks the arguments.

    ``shown`` are special tokens whose text is given out.
    """
    lib.moebind_hooks_forget(context._hooks.pointer)
    if max_tokens == 0:
        return
    writer = Writer(context._model, tokens.size, context._length_max, max_tokens, stops, shown)
    step = Batch(1)
    step.extend([0], 0, seq_id, True)
    token_in, pos_in, native_step = step.token, step.pos, step._struct()
    attached = context._attached.get(seq_id)
    chooser = attached if sampler is None else sampler
    # A greedy sampler is not asked: the token with the highest logit is found without it.
    asked = None if attached is None and chooser is not None and chooser._is_greedy else chooser
    choose = context._likeliest if asked is None else partial(context._sample_with, asked)
    generation, cached, token = prepare(context, tokens, seq_id, reuse_prefix, choose)
    owners = context._owners
    while True:
        piece = writer.take(token)
        yield piece
        if piece.stop_reason is not None:
            return
        with context._held():
            native = context._open()
            if owners[seq_id] != generation:
                context._must_own(seq_id, generation)
            if asked is None and context._steps_natively():
                following = context._likeliest_after(native, native_step, token, len(cached))
                cached.append(token)
            else:
                token_in[0], pos_in[0] = token, len(cached)
                context._compute(native, native_step, 1)
                if context._attached:
                    context._remember_sequences(step)
                cached.append(token)
                following = choose(native)
            token = following


class Generation(Decoding):
    """A context that writes text. :class:`moebind.Context` is one."""

    _model: Prompts

    def generate(
        self,
        prompt: str | ArrayLike | Sequence[Mapping[str, object]],
        *,
        sampler: Sampler | None = None,
        max_tokens: int | None = None,
        stop: Stop | Sequence[Stop] = (),
        seq_id: SupportsIndex = 0,
        reuse_prefix: bool = True,
    ) -> Iterator[Piece]:
        """Generate text, piece by piece.

        Parameters
        ----------
        prompt
            Text, token ids, or messages, which are rendered as in :meth:`chat`. Special tokens in text are recognised,
            and the tokens that the model wants at the beginning are added.
        sampler
            Chooses the tokens, and accepts those that it chose. None: the sequence's backend sampler
            (:meth:`set_sampler`) or, without one, always the likeliest token.
        max_tokens
            Stop after this many; None: when the model ends the text or the context is full.
        stop
            Texts and ids of tokens that end the generation. They, and the text after them, are left out. The text of a
            control token, such as ``"<|im_start|>"``, stands for that token.
        seq_id
            The sequence. What it holds beyond the prompt is removed.
        reuse_prefix
            Do not compute again the part of the prompt that the sequence's cache already begins with.

        Yields
        ------
        Piece
            Token, text and index. The text never splits a character; the last piece has a ``stop_reason``.

        Raises
        ------
        ValueError
            If the prompt is empty, or does not fit the context.
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
        """
        return self._generate(
            prompt,
            frozenset(),
            sampler=sampler,
            max_tokens=max_tokens,
            stop=stop,
            seq_id=seq_id,
            reuse_prefix=reuse_prefix,
        )

    def _generate(
        self,
        prompt: str | ArrayLike | Sequence[Mapping[str, object]],
        shown: frozenset[int],
        *,
        sampler: Sampler | None,
        max_tokens: int | None,
        stop: Stop | Sequence[Stop],
        seq_id: SupportsIndex,
        reuse_prefix: bool,
        more_stops: Sequence[str] = (),
    ) -> Iterator[Piece]:
        limit = checked_limit(max_tokens)
        stops = checked_stops(self._model, stop, shown, more_stops)
        tokens = self._prompt_tokens(prompt)
        seq = self._seq("seq_id", seq_id)
        if sampler is not None and not isinstance(sampler, Sampler):
            raise TypeError(f"sampler is {sampler!r}; it takes a Sampler")
        chooser = self._attached.get(seq) if sampler is None else sampler
        if chooser is not None:
            chooser._must_choose()
        return generate(
            self,
            tokens,
            sampler=sampler,
            max_tokens=limit,
            stops=stops,
            seq_id=seq,
            reuse_prefix=checks.boolean("reuse_prefix", reuse_prefix),
            shown=shown,
        )

    def _prompt_tokens(self, prompt: str | ArrayLike | Sequence[Mapping[str, object]]) -> NDArray[np.int32]:
        tokens = self._model._prompt_tokens(prompt)
        if self._encodes:
            raise BatchError("this model has no cache, so it cannot generate text: encode() gives embeddings")
        if self._predicts_ahead:
            raise BatchError(
                "this context predicts further ahead (ContextType.MTP), and cannot generate text by itself"
            )
        if tokens.size > self._length_max:
            raise ValueError(
                f"prompt has {tokens.size} tokens; a sequence of this context takes {self._length_max}: make it with a "
                "larger n_ctx"
            )
        return tokens

    @property
    def _length_max(self) -> int:
        """Tokens that a sequence can have, in its cache and for its model."""
        return min(self.n_ctx_seq, self._n_pos or self.n_ctx_seq)
