"""Models that commands load: from a file or the Hugging Face Hub, where options, a file or a fit have them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from moebind._core.progress import progress_bar
from moebind.backend.devices import Device, default_devices
from moebind.cli.devices import device_list
from moebind.cli.given import Chosen, Given
from moebind.cli.options import in_options
from moebind.cli.output import say
from moebind.diagnosis.facts import no_gpu_is_meant
from moebind.params.context_length import length_notes
from moebind.params.params import N_CTX, ContextParams, ModelParams

if TYPE_CHECKING:
    from moebind.context.context import Context
    from moebind.model.model import Model
    from moebind.params.draft import Draft

__all__ = ["Loaded", "computing", "load", "new_context", "open_model", "title", "with_devices"]

#: So much of a name is shown.
_NAME_MAX = 80


class Loaded(NamedTuple):
    """A loaded model, which is to be closed, the context to make of it, and what is to draft for it."""

    model: Model
    context_params: ContextParams
    draft: Draft | None


def load(
    model: str,
    given: Given,
    device: Sequence[str] | None,
    *,
    fitted: bool = False,
    n_ctx: int | None = N_CTX,
    draft_of: Callable[[Given, str, ModelParams, ContextParams], Draft | None] | None = None,
    mmproj: str | None = None,
) -> Loaded:
    """Load the model of a command.

    Parameters
    ----------
    model
        A file, or an address; what is not in the Hub's cache is downloaded.
    given, device
        The options.
    fitted
        Whether what they leave open is fitted to the free memory, where there are devices besides the processor and no
        file of parameters.
    n_ctx
        The length of context if neither says one; None: that of ``ContextParams``.
    draft_of
        Reads from the options what is to draft, for which there has to be room.
    mmproj
        A projector that is loaded besides, for which there has to be room, too.
    """
    params, context = computing(model, given, device, n_ctx)
    draft = None if draft_of is None else draft_of(given, model, params, context)
    if draft is not None and draft.path is None:
        params = params.with_load_mtp(True)
    used = default_devices() if params.devices is None else params.devices
    if fitted and given.values.get("params") is None and used:
        from moebind.placement.fit import fit

        found = fit(
            model,
            n_ctx=context.n_ctx or None,
            model_params=params,
            context_params=context,
            mmproj=mmproj,
            draft=draft,
        )
        params, context, draft = found.model_params, found.context_params, found.plan.draft
    return Loaded(open_model(model, params), context, draft)


def computing(
    model: str, given: Given, device: Sequence[str] | None, n_ctx: int | None
) -> tuple[ModelParams, ContextParams]:
    """The parameters of a command that computes: as options and a file have them, for devices that are here."""
    chosen = given.read(model, given.computing(device), n_ctx=n_ctx)
    chosen.check_moe_cache(chosen.context_params.moe_cache_size)
    params = with_devices(chosen, by_user=device is not None)
    if params.devices is None and not default_devices() and _is_told(given):
        params = params.with_n_gpu_layers(0)
    return params, chosen.context_params


def _is_told(given: Given) -> bool:
    """Whether nobody needs the load's warning of no device: a note has said so, or there is no card."""
    if given.values.get("n_gpu_layers") in {None, "auto"}:
        return given.values.get("params") is None and no_gpu_is_meant()
    return True


def open_model(model: str, params: ModelParams) -> Model:
    """Load a file, or what an address names, which is downloaded if it is not in the Hub's cache.

    On a terminal, a bar shows how far the load is.
    """
    from moebind.model.model import Model

    with ExitStack() as stack:
        if sys.stderr.isatty():
            progress, finish = progress_bar(os.path.basename(model), leave=False)
            stack.callback(finish)
            params = params.with_progress_callback(progress)
        return Model.load_from_file(model, params)


def new_context(model: Model, params: ContextParams) -> Context:
    """Make the context of a command, and tell where its length is another one than was asked for, or too long."""
    context = model.new_context(params)
    for told in length_notes(params.n_ctx, context.n_ctx, context.n_ctx_seq, model.n_ctx_train):
        say(f"note: {in_options(told)}")
    return context


def title(model: Model) -> str:
    """What a model is called: the name in its file, or the file's, and what llama.cpp makes of it."""
    own = "".join(each for each in model.meta.get("general.name", "") if each.isprintable()).strip()
    return f"{own[:_NAME_MAX] or os.path.basename(model.path)} ({model._title})"


def with_devices(chosen: Chosen, *, by_user: bool) -> ModelParams:
    """The parameters with the devices that were named, which have to be here.

    ``by_user`` is whether they are from an option, and not from a file: a fit may have been made for another machine.

    Raises
    ------
    ValueError
        If one is not here.
    """
    listed = device_list(chosen.device, here=by_user)
    if listed is None:
        return chosen.model_params
    here = [each for each in listed if isinstance(each, Device)]
    if len(here) == len(listed):
        return chosen.model_params.with_devices(here)
    return chosen.model_params  # a file's were only described: those of this machine take their place
