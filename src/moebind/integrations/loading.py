"""How a model is loaded for another program, by the few words that its settings have for it."""

from __future__ import annotations

import os
from typing import Any

from moebind._core.shown import shown
from moebind.backend.devices import local_gpus
from moebind.diagnosis.facts import no_gpu_is_meant
from moebind.params.params import N_CTX, ContextParams, ModelParams
from moebind.placement.fit import fit
from moebind.placement.saved import read_for

__all__ = ["LOADING", "parameters"]

#: The settings that :func:`parameters` takes.
LOADING = ("params", "n_ctx", "n_threads", "n_gpu_layers", "cpu_moe", "n_cpu_moe")
#: Those that say where the model's tensors go.
_PLACING = ("params", "n_gpu_layers", "cpu_moe", "n_cpu_moe")


def parameters(path: str | os.PathLike[str], settings: dict[str, Any]) -> tuple[ModelParams, ContextParams]:
    """The parameters that settings mean.

    Where nothing says where the model's tensors go, and there is a GPU, they are fitted to the free memory.

    Parameters
    ----------
    path
        The model's file.
    settings
        Any of :data:`LOADING`; None is as if it were not there. ``params`` is a file of parameters, such as ``moebind
        fit --save`` writes; ``cpu_moe`` keeps all experts in host memory, ``n_cpu_moe`` those of the first so many
        layers.

    Raises
    ------
    ValueError, TypeError
        If a setting is unknown, or its value is wrong.
    OSError, FitError
        If the file of parameters cannot be read, or no placement fits.
    """
    for name in settings:
        if name not in LOADING:
            raise ValueError(f"there is no setting {shown(name)}; there are {', '.join(LOADING)}")
    given = {name: value for name, value in settings.items() if value is not None and value is not False}
    model, context = ModelParams(), ContextParams(n_ctx=N_CTX)
    if "params" in given:
        saved = read_for(given["params"], path)
        model, context = saved.model_params, saved.context_params
    elif no_gpu_is_meant():
        model = model.with_n_gpu_layers(0)
    if "n_gpu_layers" in given:
        model = model.with_n_gpu_layers(given["n_gpu_layers"])
    if "n_cpu_moe" in given:
        model = model.with_n_cpu_moe(given["n_cpu_moe"])
    elif "cpu_moe" in given:
        model = model.with_cpu_moe_all()
    if "n_ctx" in given:
        context = context.with_n_ctx(given["n_ctx"])
    if "n_threads" in given:
        context = context.with_n_threads(given["n_threads"]).with_n_threads_batch(given["n_threads"])
    if not given.keys() & {*_PLACING} and local_gpus():
        found = fit(path, n_ctx=context.n_ctx or None, model_params=model, context_params=context)
        model, context = found.model_params, found.context_params
    return model, context
