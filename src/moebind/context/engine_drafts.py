"""What drafts for the texts of an engine: made for its context, and closed with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from moebind._core.owner import Owner
from moebind._core.shown import shown
from moebind.context.draft_checks import NGRAM_NAMES, NGRAMS, kinds_of
from moebind.context.drafted_by import drafted_by
from moebind.context.speculative import Speculative
from moebind.enums import SpeculativeType
from moebind.errors import SpeculativeError
from moebind.params.draft import Draft

if TYPE_CHECKING:
    from moebind.context.context import Context

__all__ = ["MODELS", "check_kind", "drafts_for"]

#: Where a model that drafts is given.
MODELS = (
    "a model that drafts is given to the engine, Engine(model, params, speculative=Draft('draft.gguf')), and Draft() "
    "is the model's own layers for multi-token prediction"
)


def check_kind(given: object) -> None:
    """Raise for what is neither a kind of n-grams nor ``"auto"``.

    Raises
    ------
    TypeError, ValueError
    SpeculativeError
    """
    if isinstance(given, str) and given == "auto":
        return
    if not isinstance(given, (str, SpeculativeType)):
        takes = "one kind of n-grams, not a list" if isinstance(given, (list, tuple)) else "a kind of n-grams"
        raise TypeError(
            f"speculative is {shown(given)}; it takes {takes}, such as 'ngram-simple', 'auto', or None: {MODELS}"
        )
    try:
        kinds = kinds_of(given, "speculative", ("auto", *NGRAM_NAMES))
    except ValueError as error:
        raise ValueError(f"{error}: {MODELS}") from None
    if kinds[0] not in NGRAMS:
        raise SpeculativeError(f"speculative is {shown(given)}, which takes a model: {MODELS}")


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
    # Some of ours can be called, and say then what to call.
    is_other_class = isinstance(given, type) and not issubclass(given, Speculative)
    if isinstance(given, Owner) or is_other_class or not callable(given):
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
