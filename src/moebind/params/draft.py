"""What is to draft for a model, with its parameters: for plans and fits, which count it, and for commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moebind._core import checks
from moebind._core.shown import shown
from moebind.enums import ContextType
from moebind.params import serialize
from moebind.params.misplaced import explained_with_fields
from moebind.params.params import ContextParams, ModelParams

__all__ = ["MTP", "Draft"]

#: llama.cpp's name for drafts by layers that predict further ahead, as ``--spec-type`` takes it.
MTP = "draft-mtp"
#: What is said of the drafts, not of the model that makes them.
_ELSEWHERE = {
    name: f"Speculative(context, draft_context, {name}=...) has it"
    for name in ("n_max", "n_min", "p_min", "kind", "auto")
}


@dataclass(frozen=True)
class Draft:
    """What is to draft for a model: for an :class:`Engine`, and for :func:`plan` and :func:`fit`, which count it.

    Attributes
    ----------
    path : str or None
        The draft's file. None: the model's own layers for multi-token prediction; for a plan or a fit of a model that
        has none, ``mtp-*.gguf`` beside it.
    model_params : ModelParams or None
        How it is loaded: without ``devices`` on those of the model. None: with as many layers on devices as was asked
        for the model.
    context_params : ContextParams or None
        Its context, of which ``n_ctx``, ``n_seq_max`` and ``kv_unified`` are always the model's. None: with its batches
        and threads, too, and caches in ``F16``; for the model's own layers all is as in the model's context.

    Examples
    --------
    >>> draft = Draft("moe.gguf", ModelParams(n_gpu_layers=0))
    >>> plan = moebind.plan("moe.gguf", devices=["1GiB"], draft=draft)
    >>> plan.draft.context_params.n_ctx == plan.n_ctx
    True
    """

    path: str | None = None
    model_params: ModelParams | None = None
    context_params: ContextParams | None = None

    def __post_init__(self) -> None:
        if self.path is not None:
            object.__setattr__(self, "path", checks.path("path", self.path))
        if self.model_params is not None and not isinstance(self.model_params, ModelParams):
            raise TypeError(f"model_params is {shown(self.model_params)}; it takes ModelParams")
        if self.context_params is not None and not isinstance(self.context_params, ContextParams):
            raise TypeError(f"context_params is {shown(self.context_params)}; it takes ContextParams")
        if self.path is None and self.model_params is not None:
            raise ValueError(
                "model_params is given without a path: the model's own layers are loaded with the model; give the "
                "draft's file, or leave model_params out"
            )
        if self.model_params is not None and self.model_params.vocab_only:
            raise ValueError("model_params has vocab_only: such a draft has no weights")

    def loaded_for(self, target: ModelParams) -> ModelParams:
        """How its file is loaded beside a model with these parameters."""
        own = self.model_params
        if own is None:
            return ModelParams(devices=target.devices, n_gpu_layers=target.n_gpu_layers, load_mtp=True)
        return own if own.devices is not None else replace(own, devices=target.devices)

    def context_for(self, target: ContextParams, n_ctx: int, *, ahead: bool) -> ContextParams:
        """Its context beside one with these parameters.

        Parameters
        ----------
        target
            The parameters of the context that it drafts for.
        n_ctx
            How many tokens that context has.
        ahead
            Whether layers draft that predict further ahead, which have contexts of their own kind.
        """
        own = self.context_params
        if own is None and self.path is None:
            # A cache of experts is the target's alone, as in llama.cpp.
            own = replace(target, eval_callback=None, embeddings=False, moe_cache_size=0)
        elif own is None:
            own = ContextParams(
                n_batch=target.n_batch,
                n_ubatch=target.n_ubatch,
                n_threads=target.n_threads,
                n_threads_batch=target.n_threads_batch,
            )
        return replace(
            own,
            n_ctx=n_ctx,
            n_seq_max=target.n_seq_max,
            kv_unified=target.kv_unified,
            ctx_type=ContextType.MTP if ahead else own.ctx_type,
        )

    def to_dict(self) -> dict[str, object]:
        """It as plain values, for JSON."""
        path = self.path
        return {
            "path": None if path is None else checks.absolute(path),
            "model_params": None if self.model_params is None else self.model_params.to_dict(),
            "context_params": None if self.context_params is None else self.context_params.to_dict(),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Draft:
        """Read what :meth:`to_dict` made.

        Raises
        ------
        TypeError, ValueError
            If it is something else.
        """
        serialize.check_names(cls, found)
        model, context = found.get("model_params"), found.get("context_params")
        return cls(
            found.get("path"),
            None if model is None else ModelParams.from_dict(model),
            None if context is None else ContextParams.from_dict(context),
        )


Draft.__init__ = explained_with_fields(  # type: ignore[method-assign]  # dataclasses wrote it
    model="Draft(path, {})", context="Draft(path, context_params={})", other_names=_ELSEWHERE
)(Draft.__init__)
