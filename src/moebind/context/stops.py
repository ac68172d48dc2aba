"""What ends a text, strings and tokens: what was given, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias

import numpy as np

from moebind._core import checks
from moebind._core.shown import shown
from moebind.enums import TokenAttr
from moebind.model.vocab import Vocabulary

__all__ = ["Stop", "Stops", "checked_limit", "checked_stops"]

#: What ends a text: a string, or a token's id.
Stop: TypeAlias = str | int

_HIDDEN = TokenAttr.CONTROL | TokenAttr.UNKNOWN


@dataclass(frozen=True)
class Stops:
    """What ends a text. ``tokens`` have what they were given as: an id, or the text of a control token."""

    texts: Sequence[str]
    tokens: Mapping[int, Stop]


def checked_stops(
    model: Vocabulary,
    stop: Stop | Sequence[Stop] | None,
    preserved: frozenset[int] = frozenset(),
    more: Sequence[str] = (),
) -> Stops:
    """``stop`` of everything that generates, None for none, and ``more`` that a template adds.

    A control token has no text that is given out, unless it is among ``preserved``, so its text as a stop is that
    token.
    """
    if isinstance(stop, (str, int, np.integer)):
        stop = [stop]
    elif isinstance(stop, (bytes, Mapping)) or not isinstance(stop, (Iterable, type(None))):
        raise TypeError(f"stop is {shown(stop)} ({type(stop).__name__}); it takes texts, and ids of tokens, or None")
    given = list(() if stop is None else stop)
    texts: list[str] = []
    tokens: dict[int, Stop] = {}
    for each in given:
        if isinstance(each, (bool, np.bool_)) or not isinstance(each, (str, int, np.integer)):
            raise TypeError(f"stop holds {shown(each)} ({type(each).__name__}); it takes texts, and ids of tokens")
        if not isinstance(each, str):
            token = checks.integer("a token in stop", each, 0, model.n_vocab - 1)
            tokens[token] = token
            continue
        if not checks.utf8("stop", each):
            raise ValueError("stop holds an empty text, which would stop everything")
        whole, hidden = _control_tokens(model, each, preserved)
        if whole is not None:
            tokens.setdefault(whole, each)
        elif hidden:
            raise ValueError(
                f"stop holds {shown(each)}, which can never come: {shown(hidden)} in it is a control token, whose text "
                "is not given out. Pass it by itself"
            )
        texts.append(each)
    for each in more:
        whole, _ = _control_tokens(model, each, preserved)
        if whole is not None:
            tokens.setdefault(whole, each)
        texts.append(each)
    return Stops(texts, tokens)


def _control_tokens(model: Vocabulary, text: str, preserved: frozenset[int]) -> tuple[int | None, str]:
    """The control token whose text this is, or the text of the first one in it."""
    ids = model.str_to_token(text, add_special=False)
    for token in ids.tolist():
        if token not in preserved and model.token_attr(token) & _HIDDEN and not model.token_to_bytes(token):
            written = model.token_to_str(token, special=True)
            if written == text:
                return token, ""
            if written and written in text:
                return None, written
    return None, ""


def checked_limit(max_tokens: SupportsIndex | None) -> int | None:
    """``max_tokens`` of everything that generates; None: none. -1 is none as well, as in llama.cpp's programs."""
    if max_tokens is None:
        return None
    limit = checks.integer("max_tokens", max_tokens, -checks.INT32_MAX)
    if limit < -1:
        raise ValueError(
            f"max_tokens is {limit}; it takes a number from 0 on, or None or -1 to go on until the model ends the text "
            "or the context is full"
        )
    return None if limit == -1 else limit
