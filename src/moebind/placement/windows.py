"""Sliding windows: whether a fit keeps a cache of full size for layers that see only a window."""

from __future__ import annotations

from collections.abc import Callable

from moebind._core.sizes import show_size
from moebind.backend.breakdown import HOST
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.plan import Plan

__all__ = ["choose", "cost", "explain"]

#: How much more a token may cost with a full-size cache than with one of windows. It is worth something: a chat goes on
#: from any point of what was computed, and not only from the end.
COST_MAX = 1.05
#: How much faster a card's memory is than a host's, about.
FASTER = 10


def choose(
    place: Callable[[ContextParams], Plan | None], n_swa: int, model: ModelParams, context: ContextParams
) -> tuple[Plan | None, Plan | None]:
    """The best plan, and what a full-size cache would have given where that is not it.

    Parameters
    ----------
    place
        Gives the best plan for a context, or None.
    n_swa
        The width of the model's windows, 0 without any.
    model, context
        What is decided already; ``swa_full`` is open if it is True.
    """
    full = place(context)
    enough = full is not None and (full.model_params == model or full.n_ctx <= n_swa)
    if enough or not n_swa or not context.swa_full:
        return full, None
    windows = place(context.with_swa_full(False))
    if windows is None or (full is not None and cost(full) <= COST_MAX * cost(windows)):
        return full, None
    return windows, full


def explain(plan: Plan, full: Plan | None, *, chosen: bool, longest: bool) -> str | None:
    """A sentence about the cache, if there is something to say.

    Parameters
    ----------
    plan, full
        As :func:`choose` gave them.
    chosen
        Whether the caller left it open, and a cache of windows was chosen.
    longest
        Whether the context is as long as it fits.
    """
    if chosen:
        why = (
            "a full-size cache would not fit"
            if full is None
            else "beside a full-size cache, a token would read "
            f"{show_size(full.weights_per_token[HOST])} of weights from host memory instead of "
            f"{show_size(plan.weights_per_token[HOST])}"
        )
        return (
            f"swa_full is False: {why}. The layers with sliding windows forget what lies more than {plan.n_swa} tokens "
            "back: a prompt that goes on where the last one ended is continued, any other is computed from its "
            "beginning. swa_full=True keeps the full-size cache."
        )
    if longest and 0 < plan.n_swa < plan.n_ctx and plan.context_params.swa_full:
        return "The layers with sliding windows have a full-size cache; with swa_full=False, a longer context may fit."
    return None


def cost(plan: Plan) -> int:
    """What a token costs, as bytes of weights from devices would."""
    host = plan.weights_per_token[HOST]
    return sum(plan.weights_per_token.values()) + (FASTER - 1) * host
