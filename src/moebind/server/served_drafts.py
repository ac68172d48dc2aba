"""What drafts for a served model: as llama-server loads it, which takes most from the model, and as its options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

from moebind._core import checks
from moebind._core.shown import shown
from moebind.enums import ContextType, GgmlType, PoolingType
from moebind.params.draft import Draft
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.plan import Plan
from moebind.server.arguments import ROWS, Devices, Settings
from moebind.server.extra import given

__all__ = ["ServedDraft", "draft_settings", "most_drafted", "served_draft", "with_outputs"]

#: llama-server drafts at most so many tokens where nobody says how many.
N_MAX = 3
#: What is the draft's own; all else is the model's.
_OWN_MODEL = {"devices": "spec-draft-device", "n_gpu_layers": "spec-draft-ngl"} | {
    "tensor_overrides": "spec-draft-override-tensor"
}
_OWN_CONTEXT = {"type_k": "spec-draft-type-k", "type_v": "spec-draft-type-v"}


@dataclass(frozen=True)
class ServedDraft(Draft):
    """A draft with llama-server's rules: all but its place and the types of its caches is as the model has it.

    ``n_max`` are the tokens that it drafts at most.
    """

    n_max: int = N_MAX

    def loaded_for(self, target: ModelParams) -> ModelParams:
        """As :meth:`Draft.loaded_for`."""
        own = super().loaded_for(target)
        # Layers that predict further ahead are loaded for the kind that they are, which follows from the file.
        return replace(target, load_mtp=True, **{name: getattr(own, name) for name in _OWN_MODEL})

    def context_for(self, target: ContextParams, n_ctx: int, *, ahead: bool) -> ContextParams:
        """As :meth:`Draft.context_for`."""
        own = ContextParams() if self.context_params is None else self.context_params
        return replace(
            target,
            n_ctx=n_ctx,
            # Some compute a whole draft at once.
            n_outputs_max=target.n_seq_max * (1 + self.n_max),
            n_outputs_max_per_seq=1,
            n_rs_seq=0,
            moe_cache_size=0,
            embeddings=False,
            pooling_type=PoolingType.UNSPECIFIED,
            ctx_type=ContextType.MTP if ahead else target.ctx_type,
            **{name: getattr(own, name) for name in _OWN_CONTEXT},
        )


def served_draft(
    draft: Draft | str | os.PathLike[str] | bool | None,
    model_params: ModelParams,
    context_params: ContextParams,
    n_max: int = N_MAX,
) -> ServedDraft | bool | None:
    """What was asked for beside a model with these parameters, with llama-server's rules.

    Raises
    ------
    TypeError
        If it is no draft.
    ValueError
        If it has a parameter that llama-server takes from the model.
    """
    if draft is None or isinstance(draft, bool):
        return draft
    if not isinstance(draft, Draft):
        return ServedDraft(checks.path("draft", draft), n_max=n_max)
    for asked, target, own in (
        (draft.model_params, model_params, {*_OWN_MODEL, "load_mtp"}),
        (draft.context_params, context_params, {*_OWN_CONTEXT, *_FOLLOWED}),
    ):
        for each in fields(target):
            followed = (each.default, getattr(target, each.name))
            if asked is not None and each.name not in own and getattr(asked, each.name) not in followed:
                raise ValueError(
                    f"draft has {each.name} {shown(getattr(asked, each.name))}: llama-server takes it from the model; "
                    f"a draft's own are {', '.join([*_OWN_MODEL, *_OWN_CONTEXT])}"
                )
    return ServedDraft(draft.path, draft.model_params, draft.context_params, n_max)


#: Of the context, what a draft has from the model wherever it is loaded.
_FOLLOWED = ("n_ctx", "n_seq_max", "kv_unified", "n_batch", "n_ubatch", "n_threads", "n_threads_batch", "ctx_type")


def most_drafted(extra: Sequence[str]) -> int:
    """How many tokens are drafted at most, by the arguments for llama-server itself: the last one counts."""
    found = N_MAX
    for name, value in pairwise([*extra, ""]):
        if given("spec-draft-n-max", [name]) and value.isdecimal():
            found = int(value)
    return found


def with_outputs(context: ContextParams, n_max: int = N_MAX) -> ContextParams:
    """The model's context, which has outputs for what is drafted, too."""
    if context.embeddings or context.pooling_type not in {PoolingType.UNSPECIFIED, PoolingType.NONE}:
        return context
    a_sequence = 1 + n_max
    return replace(
        context,
        n_outputs_max=min(context.n_batch, context.n_seq_max * a_sequence),
        n_outputs_max_per_seq=min(context.n_batch, a_sequence),
    )


def draft_settings(plan: Plan, path: str | None, there: Devices) -> Settings:
    """llama-server's options for the draft of a plan, whose file is at ``path``."""
    draft, memory = plan.draft, plan._draft
    if draft is None or memory is None:
        return {}
    found: Settings = {"spec-type": memory.kind.name.lower().replace("_", "-")}
    context = draft.context_params or ContextParams()
    for name, option in _OWN_CONTEXT.items():
        kind: GgmlType = getattr(context, name)
        found[option] = kind.name.lower()
    if path is None or draft.model_params is None:
        return found
    model = draft.model_params
    found |= {"spec-draft-model": path, "spec-draft-ngl": "all" if model.n_gpu_layers < 0 else str(model.n_gpu_layers)}
    found["spec-draft-device"] = ",".join(there.names[each.name] for each in memory.devices[:-1]) or "none"
    rules = ROWS["tensor_overrides"].write(model.tensor_overrides, there)
    if isinstance(rules, str):
        found["spec-draft-override-tensor"] = rules
    return found
