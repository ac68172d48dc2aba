"""What generating gives: pieces of text while it goes on, and a completion at its end."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from moebind._core.native import ffi, lib
from moebind._core.other_names import missing
from moebind._core.shown import shown
from moebind.context.stop_strings import StopStrings
from moebind.context.stops import Stop, Stops
from moebind.model.vocab import PIECE_BYTES, Vocabulary

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Completion", "Piece", "Pieces", "Record", "StopReason", "Stream", "TokenLogprob", "Usage", "Writer"]

StopReason = Literal["eog", "stop", "length", "context"]


class TokenLogprob(NamedTuple):
    """A token that could have come, and how likely it was.

    Attributes
    ----------
    token : int
        The token's id.
    text : str
        Its text, also of a control token; bytes that are not UTF-8 by themselves are replaced.
    logprob : float
        The natural logarithm of its probability.
    """

    token: int
    text: str
    logprob: float


class _Attributes:
    """Says that what it has are attributes, where another library has a dict."""

    if not TYPE_CHECKING:  # type checkers say it themselves

        def __getitem__(self, key: object) -> NoReturn:
            raise TypeError(
                f"{type(self).__name__} is no dict, and has no [{shown(key)}]: it has attributes, such as .text, "
                ".stop_reason; docs/migrating.md has more"
            )


@dataclass(frozen=True)
class Piece(_Attributes):
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
    logprob : float or None
        The natural logarithm of the token's probability, if ``logprobs`` was given. It is the model's own probability:
        before samplers, temperatures and grammars.
    top : tuple of TokenLogprob
        The likeliest tokens in its place, the likeliest first; empty unless ``logprobs`` is a number.
    """

    token: int
    text: str
    index: int
    stop_reason: StopReason | None = None
    stop: Stop | None = None
    # Not set unless they are asked for: each field of a frozen dataclass takes a tenth of a microsecond a token.
    logprob: float | None = field(default=None, init=False)
    top: tuple[TokenLogprob, ...] = field(default=(), init=False)

    if not TYPE_CHECKING:  # type checkers would take it for any attribute

        def __getattr__(self, name: str) -> object:
            raise missing(self, name)

    def _with_score(self, logprob: float, top: tuple[TokenLogprob, ...]) -> Piece:
        """The piece, which nobody has yet, with its token's probability."""
        object.__setattr__(self, "logprob", logprob)
        object.__setattr__(self, "top", top)
        return self


@dataclass(frozen=True)
class Usage:
    """How many tokens a generation took.

    Attributes
    ----------
    prompt_tokens : int
        Tokens of the prompt.
    cached_tokens : int
        How many of them were in the cache already, and were not computed; 0 before the first piece.
    generated_tokens : int
        Tokens that were generated so far, with the one that ended the text.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int

    @property
    def total_tokens(self) -> int:
        """Tokens of the prompt, and generated ones."""
        return self.prompt_tokens + self.generated_tokens

    if not TYPE_CHECKING:  # type checkers would take it for any attribute

        def __getattr__(self, name: str) -> object:
            raise missing(self, name)


@dataclass(frozen=True)
class Completion(_Attributes):
    """A generated text, whole. ``str(completion)`` is its text.

    Attributes
    ----------
    text : str
        The text.
    stop_reason : str or None
        Why it ended, as in :class:`Piece`; None if it was closed, or failed, before its end.
    stop : str, int or None
        Which stop came, as in :class:`Piece`.
    usage : Usage
        How many tokens it took.
    pieces : tuple of Piece
        The pieces that it was made of, one for each token.
    """

    text: str
    stop_reason: StopReason | None
    stop: Stop | None
    usage: Usage
    pieces: tuple[Piece, ...]

    if not TYPE_CHECKING:  # type checkers would take it for any attribute

        def __getattr__(self, name: str) -> object:
            raise missing(self, name)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that were generated."""
        return tuple(piece.token for piece in self.pieces)

    @property
    def logprobs(self) -> tuple[float, ...] | None:
        """The ``logprob`` of each token; None unless they were asked for."""
        logprobs = tuple(piece.logprob for piece in self.pieces if piece.logprob is not None)
        return logprobs if logprobs and len(logprobs) == len(self.pieces) else None

    def __str__(self) -> str:
        return self.text


class Record:
    """What was generated so far.

    Parameters
    ----------
    n_prompt
        How many tokens the prompt has.
    stop_reason
        Why the text has ended before it began: nothing was asked for.
    """

    def __init__(self, n_prompt: int, stop_reason: StopReason | None = None) -> None:
        self.n_prompt, self.n_cached = n_prompt, 0
        self.pieces: list[Piece] = []
        self._stop_reason = stop_reason
        self._text, self._n_joined = "", 0

    @property
    def text(self) -> str:
        """The text so far."""
        if self._n_joined < len(self.pieces):
            self._text += "".join([piece.text for piece in self.pieces[self._n_joined :]])
            self._n_joined = len(self.pieces)
        return self._text

    @property
    def stop_reason(self) -> StopReason | None:
        """Why it ended; None until then."""
        return self.pieces[-1].stop_reason if self.pieces else self._stop_reason

    @property
    def stop(self) -> Stop | None:
        """Which stop came."""
        return self.pieces[-1].stop if self.pieces else None

    @property
    def usage(self) -> Usage:
        """How many tokens it took so far."""
        return Usage(self.n_prompt, self.n_cached, len(self.pieces))

    def completion(self) -> Completion:
        """All of it."""
        return Completion(self.text, self.stop_reason, self.stop, self.usage, tuple(self.pieces))


class Stream(_Attributes, Iterator[Piece]):
    """A generation that goes on: an iterator of pieces, which remembers what came."""

    _pieces: Iterator[Piece]
    _record: Record

    def _start(self, pieces: Iterator[Piece], record: Record) -> None:
        self._pieces, self._record = pieces, record

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        self._record.pieces.append(piece)
        return piece

    def __repr__(self) -> str:
        so_far = f"{len(self._record.pieces)} tokens so far"
        return f"<{type(self).__name__}, {so_far}: loop over it, or .complete() gives the whole>"

    @property
    def text(self) -> str:
        """The text so far, as the model wrote it: empty before the first piece, all of it after :meth:`complete`."""
        return self._record.text

    @property
    def stop_reason(self) -> StopReason | None:
        """Why it ended, as in :class:`Piece`; None until then."""
        return self._record.stop_reason

    @property
    def stop(self) -> Stop | None:
        """Which stop came, as in :class:`Piece`."""
        return self._record.stop

    @property
    def usage(self) -> Usage:
        """How many tokens it took so far."""
        return self._record.usage

    def close(self) -> None:
        """End it: nothing more is generated, and what came stays. Closing twice does nothing.

        It is for the thread that iterates. ``Context.abort`` stops a computation from another one.
        """
        self._pieces.close()  # type: ignore[attr-defined]  # a generator

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Pieces(Stream):
    """A text while it is generated: an iterator of :class:`Piece`. Made by ``Context.generate``.

    Examples
    --------
    >>> for piece in context.generate("Once upon a time", max_tokens=32):
    ...     print(piece.text, end="", flush=True)
    >>> completion = context.generate("The capital of France is", max_tokens=8).complete()
    >>> print(completion.text, completion.stop_reason, completion.usage)
    """

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("pieces are made by Context.generate(prompt)")

    @classmethod
    def _of(cls, pieces: Iterator[Piece], record: Record) -> Self:
        made = cls.__new__(cls)
        made._start(pieces, record)
        return made

    def complete(self) -> Completion:
        """Generate the rest, and return the whole, with what came before."""
        for _ in self:
            pass
        return self._record.completion()


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

    @property
    def n_left(self) -> float:
        """How many more tokens may come; infinity if there is no limit but the context's."""
        return self._limit + 1 - self._index

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
        # Bytes of a character that is cut off are left out.
        if index >= self._limit:
            return Piece(token, text + self._held.flush(), index, "length")
        if index >= self._last:
            return Piece(token, text + self._held.flush(), index, "context")
        return Piece(token, text, index)

    def _rest(self) -> str:
        return self._held.flush() + self._decode(b"", True)
