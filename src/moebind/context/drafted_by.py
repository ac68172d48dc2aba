"""What drafts for a context, made of a description: commands have it of their options, and tuning of what it tries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from moebind.context.context import Context
from moebind.context.mtp_speculative import MtpSpeculative, MtpSpeculativeParams, own_layers
from moebind.context.speculative import Speculative
from moebind.files.architecture_facts import USE_OTHER_CONTEXT
from moebind.model.model import Model
from moebind.params.draft import MTP, Draft
from moebind.params.params import ModelParams

__all__ = ["drafted_by"]


@contextmanager
def drafted_by(
    target: Context,
    draft: Draft | None,
    kinds: Sequence[str] = (),
    *,
    auto: bool = False,
    load: Callable[[str, ModelParams], Model] = Model.load_from_file,
    **numbers: Any,
) -> Iterator[Speculative]:
    """Have a draft, or n-grams, draft for a context, until it is left; its model and context are closed then.

    Parameters
    ----------
    target
        The context.
    draft
        The model that drafts, and with which parameters; None: none does.
    kinds
        llama.cpp's names; none of them: what the draft is.
    auto
        Whether it is measured, and switched off where it loses.
    load
        Loads the draft's model, if that is not the target's.
    numbers
        Those of :class:`Speculative`, or :class:`MtpSpeculativeParams`.

    Raises
    ------
    SpeculativeError
        If it cannot draft for this context.
    ModelLoadError, ContextCreationError
        If the draft's file is none, or cannot be loaded.
    """
    with ExitStack() as opened:
        made = None if draft is None else _context_of(draft, target, load, opened)
        if draft is not None and draft.path is None and list(kinds) == [MTP] and not auto:
            yield opened.enter_context(MtpSpeculative(target, made, MtpSpeculativeParams(**numbers)))
        else:
            yield opened.enter_context(Speculative(target, made, kind=list(kinds) or None, auto=auto, **numbers))


def _context_of(draft: Draft, target: Context, load: Callable[[str, ModelParams], Model], opened: ExitStack) -> Context:
    if draft.path is None:
        model = own_layers(target.model)
    else:
        model = opened.enter_context(load(draft.path, draft.loaded_for(target.model.params)))
    params = draft.context_for(target.params, target.n_ctx, ahead=bool(model.n_layer_nextn))
    # Which contexts know the target's follows from the draft's file.
    other = target if model._architecture in USE_OTHER_CONTEXT else None
    return opened.enter_context(model.new_context(params, ctx_other=other))
