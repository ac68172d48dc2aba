"""What drafts for the texts of an engine: made for its context, and closed with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from moebind._core.shown import shown
from moebind.context.drafted_by import drafted_by
from moebind.context.speculative import Speculative
from moebind.enums import SpeculativeType
from moebind.params.draft import Draft

if TYPE_CHECKING:
    from moebind.context.context import Context

__all__ = ["drafts_for"]


def drafts_for(
    context: Context,
    given: SpeculativeType | str | Draft | Callable[[Context], Speculative] | None,
    opened: ExitStack,
) -> Speculative | None:
    """What drafts for an engine's context, unless a text says otherwise.

    Parameters
    ----------
    context
        The engine's.
    given
        What the engine was told.
    opened
        Is to close what is made here, once the context is closed.

    Raises
    ------
    TypeError, ValueError
        If it is something else.
    SpeculativeError
        If it cannot draft for this context.
    ModelLoadError, ContextCreationError
        If the draft's file is none, or cannot be loaded.
    """
    if isinstance(given, Draft):
        return opened.enter_context(drafted_by(context, given))
    if given is None or isinstance(given, (str, SpeculativeType)):
        return context._drafting_with(given)
    if isinstance(given, Speculative) or not callable(given):
        raise TypeError(
            f"speculative is {shown(given)}; an engine takes a kind of n-grams, such as 'ngram-simple', 'auto', "
            "Draft('draft.gguf'), or a function that is given the engine's context, and makes a Speculative for it: "
            "lambda context: Speculative(context, draft_context)"
        )
    made = given(context)
    if not isinstance(made, Speculative):
        raise TypeError(f"the function for speculative gave {shown(made)}; it is to make a Speculative")
    opened.callback(made.close)
    return context._drafting_with(made)
