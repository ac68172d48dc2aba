"""What drafts, in plans: its weights, its context and its scratch memory, beside the model that it drafts for.

It is simulated as the model is, in the same way as it would be loaded: after it, on what the model leaves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moebind._core import checks
from moebind._core.native import CData, decoded, lib
from moebind._core.shown import shown
from moebind.backend.breakdown import DeviceMemory, gather, read_parts
from moebind.backend.host_memory import HostMemory
from moebind.context.draft_checks import FROM_STATES, MARKOV, kind_of_draft, states_problem
from moebind.enums import SpeculativeType, SplitMode
from moebind.errors import NativeError, SpeculativeError
from moebind.files.architecture_facts import USE_OTHER_CONTEXT
from moebind.files.sidecars import beside
from moebind.params.draft import Draft
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.draft_memory import DraftMemory
from moebind.placement.header import Header, read_header
from moebind.placement.simulation import devices_of, held, load, new_context, watched

__all__ = ["Drafter", "find_drafter", "models_own"]


@dataclass(frozen=True)
class Drafter:
    """What is to draft, its file's header, None for the model's own layers, and all devices that there are."""

    given: Draft
    header: Header | None
    target: Header
    natives: Sequence[CData] | None

    def count(
        self,
        model_params: ModelParams,
        context_params: ContextParams,
        context: CData,
        taken: Sequence[DeviceMemory],
        devices: Sequence[CData] | None,
        host: HostMemory | None,
    ) -> DraftMemory:
        """Count it, and have the model's context keep the hidden states that it takes.

        Parameters
        ----------
        model_params, context_params, context
            Of the model that it drafts for, and that model's context.
        taken
            What the model takes.
        devices
            The model's devices, if they need not be this machine's.
        host
            As in a simulation.

        Raises
        ------
        SpeculativeError
            If it cannot draft for this model.
        ModelLoadError, ContextCreationError, ValueError
            As for a model.
        """
        n_ctx = int(lib.llama_n_ctx(context))
        if self.header is None:
            return self._own_layers(context_params, context, n_ctx, host)
        params = self.given.loaded_for(model_params)
        used = devices
        if self.natives is not None and self.given.model_params is not None and params.devices is not None:
            by_name = _by_name(self.natives)
            used = [by_name[device.name] for device in params.devices]
        with watched(self.header, params, used):
            draft = load(self.header, params, used)
            there = devices_of(draft)
            spread = len(there) > 1 and params.n_gpu_layers and params.split_mode == SplitMode.LAYER
            if spread and params.tensor_split is None:
                # llama.cpp spreads layers by the memory that is free: by then, the model has taken its part.
                rooms = _left(taken, there)
                if any(rooms):
                    params = params.with_tensor_split(rooms)
                    draft = load(self.header, params, used)
            return self._of_file(params, draft, context_params, context, n_ctx, host)

    def _own_layers(self, target: ContextParams, context: CData, n_ctx: int, host: HostMemory | None) -> DraftMemory:
        model = lib.llama_get_model(context)
        if not lib.llama_model_n_layer_nextn(model):
            raise SpeculativeError(
                f"{self.target.paths[0]} has no layers that predict further ahead (MTP), or llama.cpp does not load "
                "them: give the file of a draft model"
            )
        params = self.given.context_for(target, n_ctx, ahead=True)
        made = new_context(model, params, context)
        self._begin(SpeculativeType.DRAFT_MTP, context, made)
        parts = [(buffer_type, replace(buffer, model=0)) for buffer_type, buffer in read_parts(made)]
        devices = gather(parts, devices_of(model), host)
        return DraftMemory(replace(self.given, context_params=params), SpeculativeType.DRAFT_MTP, devices, 0, 0)

    def _of_file(
        self,
        params: ModelParams,
        draft: CData,
        target: ContextParams,
        context: CData,
        n_ctx: int,
        host: HostMemory | None,
    ) -> DraftMemory:
        assert self.header is not None  # noqa: S101  # who calls has looked
        architecture = self.header.architecture
        if architecture == "gemma4-assistant" and self.target.architecture != "gemma4":
            raise SpeculativeError(
                f"{self.given.path} drafts for models of architecture gemma4, and {self.target.paths[0]} is a "
                f"{self.target.architecture}"
            )
        ahead = bool(lib.llama_model_n_layer_nextn(draft))
        own = self.given.context_for(target, n_ctx, ahead=ahead)
        made = new_context(draft, own, context if ahead or architecture in USE_OTHER_CONTEXT else None)
        kind = kind_of_draft(architecture, ahead=ahead, markov=MARKOV in self.header.tensors)
        self._begin(kind, context, made)
        memory = held(self.header, params, draft, made, host)
        resolved = replace(self.given, model_params=params, context_params=own)
        return DraftMemory(resolved, kind, memory.devices, memory.gaps, memory.lazy)

    def _begin(self, kind: SpeculativeType, context: CData, made: CData) -> None:
        problem = None
        if kind in FROM_STATES:
            problem = states_problem(lib.llama_get_model(context), lib.llama_get_model(made), kind)
        if problem is not None:
            raise SpeculativeError(f"{self.given.path or self.target.paths[0]}: {problem}")
        try:
            lib.moebind_speculative_states(kind, context, made)
            for each in (context, made):
                lib.moebind_reserve(each)
        except NativeError as error:
            raise SpeculativeError(f"{self.given.path or self.target.paths[0]}: {error.message}") from error


def _by_name(natives: Sequence[CData]) -> dict[str, CData]:
    return {decoded(lib.ggml_backend_dev_name(native)): native for native in natives}


def _left(taken: Sequence[DeviceMemory], devices: Sequence[CData]) -> list[float]:
    """Bytes that are left of each device."""
    free = {device.name: float(max(device.free - device.total, 0)) for device in taken}
    return [free.get(decoded(lib.ggml_backend_dev_name(device)), 0.0) for device in devices]


def find_drafter(
    draft: Draft | str | os.PathLike[str] | bool | None,
    model: str,
    header: Header,
    model_params: ModelParams,
    natives: Sequence[CData] | None,
) -> tuple[Drafter | None, ModelParams]:
    """What is to draft for a model, and the model's parameters, with its own layers loaded if these draft.

    ``model`` is the model's file or address, as it was given: what is in the Hub's cache may lack its sidecars.

    Raises
    ------
    SpeculativeError
        If the model's own layers are meant, and there are none.
    ModelLoadError, ValueError
        If the draft's file is none.
    """
    if draft is None or draft is False:
        return None, model_params
    if draft is True:
        given = Draft()
    elif isinstance(draft, Draft):
        given = draft
    elif isinstance(draft, (str, os.PathLike)):
        given = Draft(checks.path("draft", draft))
    else:
        raise TypeError(f"draft is {shown(draft)}; it takes a file, a Draft, or True for the model's own layers")
    if given.path is None:
        given = replace(given, path=models_own(model, header))
    if given.path is None:
        return Drafter(given, None, header, natives), model_params.with_load_mtp(True)
    names = None if natives is None else _by_name(natives)
    for device in (given.model_params and given.model_params.devices) or ():
        if names is not None and device.name not in names:
            raise ValueError(
                f"draft has the device {shown(device.name)}, which is not among those that are planned for: "
                f"{', '.join(names) or 'none'}"
            )
    if given.model_params is None:
        # As many layers as were asked for the model: a fit may choose fewer for that one.
        given = replace(given, model_params=replace(given.loaded_for(model_params), devices=None))
    return Drafter(given, read_header(given.path or ""), header, natives), model_params


def models_own(
    model: str,
    header: Header,
    instead: str = "give the file of a draft model (draft=, or --model-draft on a command line)",
) -> str | None:
    """The file with the layers that predict further ahead for a model; None: they are in the model's own file.

    Parameters
    ----------
    model
        The model's file or address; a file beside it is looked for there.
    header
        Its header.
    instead
        What the message tells to do if there is neither.

    Raises
    ------
    SpeculativeError
        If there is neither.
    ModelLoadError
        If a repository is to be looked into, and the Hub cannot be asked.
    """
    if header.layers_ahead:
        return None
    near = beside(model, "mtp")
    if near is None:
        raise SpeculativeError(
            f"{model} has no layers that predict further ahead (MTP), and no mtp-*.gguf lies beside it: {instead}"
        )
    return near
