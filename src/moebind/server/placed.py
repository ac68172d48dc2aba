"""Models placed for serving: each by a fit of its own, and how many of them are in memory at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from moebind._core.sizes import show_size
from moebind._core.tables import Column, text_table
from moebind.backend.devices import Device, devices
from moebind.enums import PoolingType, SplitMode
from moebind.errors import FitError, MoebindError
from moebind.files.download import local_file
from moebind.params.draft import Draft
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.device_budgets import MARGIN, MARGIN_SHARE
from moebind.placement.drafter import models_own
from moebind.placement.fit import fit
from moebind.placement.header import read_header
from moebind.placement.plan import Plan, plan
from moebind.server.arguments import Devices, Settings, settings
from moebind.server.folders import Found
from moebind.server.presets import unwritable
from moebind.server.served_drafts import N_MAX, ServedDraft, draft_settings, with_outputs

__all__ = ["ServedModel", "Wishes", "place", "budgets", "prompt_cache", "server_context", "table", "together", "tried"]

#: Requests that are answered side by side where nobody says how many; as in llama-server, they share one cache.
PARALLEL = 4
#: Tokens of context of each of several models where nobody says how many; a single one gets as many as fit.
N_CTX_OF_SEVERAL = 8192
#: Bytes that a driver takes of a device for each process, such as a CUDA context; no plan has them.
DRIVER = 2**29
#: MiB of host memory for prompts of earlier requests, as in llama-server: here no more than is left.
PROMPT_CACHE = 8192


@dataclass(frozen=True)
class ServedModel:
    """A model of a server: where it is, or would be, and why it is not offered if it is not.

    Attributes
    ----------
    name : str
        What clients call it.
    path : str
        Its file, or the first one.
    plan : Plan or None
        What it takes; None if that could not be found out.
    mmproj : str or None
        The file with which it sees or hears.
    reason : str or None
        Why it is not offered; None if it is.
    """

    name: str
    path: str
    plan: Plan | None = None
    mmproj: str | None = None
    reason: str | None = None
    #: llama-server's options for it.
    options: Settings = field(default_factory=dict, repr=False, compare=False)

    @property
    def offered(self) -> bool:
        """Whether clients can ask it."""
        return self.reason is None

    @property
    def used(self) -> list[Device]:
        """The devices that its layers may be on, in the order in which they take them."""
        known = {device.name: device for device in devices()}
        return [] if self.plan is None else [known[device.name] for device in self.plan._own_devices]

    @property
    def used_by_draft(self) -> list[Device]:
        """The devices that only its draft may be on."""
        known = {device.name: device for device in devices()}
        own = {device.name for device in self.used}
        others = () if self.plan is None else (each for each in self.plan.devices[:-1] if each.name not in own)
        return [known[device.name] for device in others]

    @property
    def needs(self) -> dict[str, int]:
        """Bytes that have to be free, by device."""
        if self.plan is None:
            return {}
        needs = {device.name: device.total for device in self.plan.devices}
        needs[self.plan.host.name] -= self.plan.gaps + self.plan.lazy
        return needs

    def to_dict(self) -> dict[str, object]:
        """The model as plain values, for JSON: keys stay the same from version to version."""
        return {
            "name": self.name,
            "path": self.path,
            "mmproj": self.mmproj,
            "reason": self.reason,
            "plan": None if self.plan is None else self.plan.to_dict(),
        }


@dataclass(frozen=True)
class Wishes:
    """What was asked for every model: parameters, whether they are fitted, and bytes that stay free (None: fit's).

    ``n_ctx`` is a length of context that was asked for, which the parameters have, too: there it may be the default.
    ``draft`` is what drafts, with llama-server's rules, ``n_drafted`` tokens at most.
    """

    model_params: ModelParams
    context_params: ContextParams
    fitted: bool = True
    margin: int | None = None
    n_ctx: int | None = None
    draft: Draft | bool | None = None
    n_drafted: int = N_MAX


def server_context(given: ContextParams | None, parallel: int | None) -> ContextParams:
    """The context that llama-server makes for these parameters: what it decides itself is as it decides it.

    ``parallel`` is how many requests it answers side by side; None: as many as the parameters have sequences if that is
    not the default of 1, else four that share the cache.
    """
    context = ContextParams(swa_full=False, kv_unified=True) if given is None else given
    if parallel is not None:
        context = context.with_n_seq_max(parallel)
    elif context.n_seq_max == 1:
        context = context.with_n_seq_max(PARALLEL).with_kv_unified(True)
    every = context.embeddings or context.pooling_type not in {PoolingType.UNSPECIFIED, PoolingType.NONE}
    if context.embeddings:  # all tokens of an input are computed at once
        context = context.with_n_batch(min(context.n_batch, context.n_ubatch))
    outputs = context.n_batch if every else min(context.n_batch, context.n_seq_max)
    return context.with_n_outputs_max(outputs).with_n_outputs_max_per_seq(1)


def place(found: Found, wishes: Wishes, *, alone: bool) -> ServedModel:
    """Place a model.

    ``alone``: it has all the memory, and its context takes what is left; or else other models need some, too.

    Raises
    ------
    FitError
        If it does not fit.
    ModelLoadError, ContextCreationError, ValueError
        As for :func:`fit`, and if llama-server cannot take a parameter.
    """
    wishes = replace(wishes, context_params=_pooled(found, wishes.context_params))
    if wishes.draft:
        wishes = replace(wishes, context_params=with_outputs(wishes.context_params, wishes.n_drafted))
    if wishes.draft is True:
        wishes = replace(wishes, draft=ServedDraft(n_max=wishes.n_drafted))
    if isinstance(wishes.draft, Draft) and wishes.draft.path is None:
        own = models_own(found.path, read_header(found.path))
        wishes = replace(wishes, draft=replace(wishes.draft, path=own))
    chosen = _fitted(found, wishes, alone) if wishes.fitted else _planned(found, wishes)
    if wishes.fitted and not chosen.fits:  # the host has no budget of its own where there are devices
        raise FitError(f"{os.path.basename(found.path)} does not fit: {' '.join(chosen.advice)}", chosen.missing)
    path = local_file(found.path)  # what does not fit is not downloaded
    projector = None if found.mmproj is None else local_file(found.mmproj)
    model = ServedModel(found.name, path, chosen, projector)
    there = Devices.of(model.used, model.used_by_draft)
    # The servers come before their devices' names.
    options: Settings = {"model": path, "fit": "off", **({"rpc": ",".join(there.rpc)} if there.rpc else {})}
    if projector is not None:
        options["mmproj"] = projector
    params = chosen.model_params
    if params.split_mode == SplitMode.NONE:
        params = params.with_main_gpu(0)  # the only one that is used
    options |= settings(params, chosen.context_params, there)
    if chosen.draft is not None:
        options |= draft_settings(chosen, None if chosen.draft.path is None else local_file(chosen.draft.path), there)
    return replace(model, options=options)


def tried(found: Found, wishes: Wishes, *, alone: bool) -> ServedModel:
    """Place one of several models: what is in its way is its reason not to be offered."""
    try:
        model = place(found, wishes, alone=alone)
    except (MoebindError, ValueError, OSError) as error:
        return ServedModel(found.name, found.path, mmproj=found.mmproj, reason=str(error))
    return replace(model, reason=unwritable(model.options))


def _pooled(found: Found, context: ContextParams) -> ContextParams:
    """With the pooling that ``Model.embed`` has where neither the parameters nor the file say one: clients need one."""
    if not context.embeddings or context.pooling_type != PoolingType.UNSPECIFIED:
        return context
    none = int(PoolingType.NONE)
    own = read_header(found.path).integer("pooling_type", none)
    return context.with_pooling_type(PoolingType.MEAN) if own in {none, int(PoolingType.UNSPECIFIED)} else context


def _planned(found: Found, wishes: Wishes) -> Plan:
    beside: dict[str, Any] = {"mmproj": found.mmproj, "draft": wishes.draft}
    return plan(found.path, wishes.model_params, wishes.context_params, **beside)


def _fitted(found: Found, wishes: Wishes, alone: bool) -> Plan:
    context = wishes.context_params
    asked: dict[str, Any] = {"model_params": wishes.model_params, "context_params": context}
    asked |= {"margin": wishes.margin, "mmproj": found.mmproj, "draft": wishes.draft}
    if not alone and wishes.n_ctx is None and context.n_ctx in {0, ContextParams().n_ctx}:
        n_ctx = min(N_CTX_OF_SEVERAL, read_header(found.path).integer("context_length", N_CTX_OF_SEVERAL))
        with suppress(FitError):  # a shorter one may fit
            return fit(found.path, n_ctx=n_ctx, **asked).plan
    return fit(found.path, n_ctx=wishes.n_ctx, **asked).plan


def budgets(models: Sequence[ServedModel], margin: int | None) -> dict[str, int]:
    """Bytes that may be taken of each device, and of the host: what is free, less the margin."""
    free = {device.name: device.free for model in models if model.plan for device in model.plan.devices}
    return {
        name: max(size - (min(MARGIN, size // MARGIN_SHARE) if margin is None else margin), 0)
        for name, size in free.items()
    }


def together(models: Sequence[ServedModel], allowed: Mapping[str, int], driver: int = DRIVER) -> int:
    """The largest number of models of which any set fits into memory together; at least 1.

    llama-server counts models, and not bytes: so it is the largest ones that count. ``driver`` are the bytes that each
    process after the first takes of a device besides; that of the first is in the margin.
    """
    most = len(models)
    hosts = {model.plan.host.name for model in models if model.plan}
    for name, size in allowed.items():
        needs = sorted((model.needs.get(name, 0) for model in models), reverse=True)
        besides = 0 if name in hosts else driver
        while most > 1 and sum(needs[:most]) + (most - 1) * besides > size:
            most -= 1
    return max(most, 1)


def prompt_cache(models: Sequence[ServedModel], allowed: Mapping[str, int], at_once: int) -> int:
    """MiB of host memory that each model may keep prompts of earlier requests in: what the models leave."""
    left = PROMPT_CACHE * 2**20 * at_once
    for name in {model.plan.host.name for model in models if model.plan}:
        needs = sorted((model.needs[name] for model in models), reverse=True)
        left = min(left, allowed[name] - sum(needs[:at_once]))
    return max(left, 0) // at_once // 2**20


def table(models: Sequence[ServedModel]) -> list[str]:
    """Lines for people: each model with its context and what it takes, by device, or why it is not offered."""
    offered = [model for model in models if model.plan is not None and model.offered]
    names = list(dict.fromkeys(device.name for model in offered if model.plan for device in model.plan.devices))
    columns = [Column("model", left=True), Column("context"), Column("parallel"), *(Column(name) for name in names)]
    rows = []
    for model in offered:
        assert model.plan is not None  # noqa: S101  # as above
        needs = {device.name: device.total for device in model.plan.devices}
        sizes = [show_size(needs[name]) if name in needs else None for name in names]
        rows.append([model.name, str(model.plan.n_ctx), str(model.plan.context_params.n_seq_max), *sizes])
    lines = text_table(columns, rows) if rows else []
    return [
        *lines,
        *(f"{model.name} is not offered: {' '.join(model.reason.split())}" for model in models if model.reason),
    ]
