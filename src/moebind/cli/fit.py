"""``moebind fit``: parameters that fit into a budget of memory."""

from __future__ import annotations

import shlex
from enum import Enum
from typing import Annotated

import typer

from moebind.cli import options as o
from moebind.cli.output import show, show_json
from moebind.cli.plan import Devices
from moebind.cli.written_options import as_options
from moebind.params.params import ContextParams
from moebind.params.serialize import carried
from moebind.placement.fit import fit


class Goal(str, Enum):
    """The kind of work that is to be fast."""

    decode = "decode"
    prompt = "prompt"
    balanced = "balanced"


Memory = Annotated[
    list[str] | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="What each device may take, such as 8GiB; or DEVICE=SIZE, several times for several, Host for host "
        "memory.",
        show_default="what is free, less the margin",
    ),
]
Margin = Annotated[
    str | None,
    typer.Option("--margin", metavar="SIZE", help="What stays free.", show_default="1GiB, at most a tenth"),
]
Context = Annotated[
    int | None,
    typer.Option("--ctx-size", "--n-ctx", "-c", metavar="N", help="Tokens of context.", show_default="as many as fit"),
]
ContextMin = Annotated[
    int, typer.Option("--ctx-size-min", "--n-ctx-min", metavar="N", help="The shortest context that will do.")
]
For = Annotated[Goal, typer.Option("--goal", help="What is to be fast.")]


def command(
    model: o.ModelPath,
    memory: Memory = None,
    margin: Margin = None,
    device: Devices = None,
    goal: For = Goal.decode,
    n_gpu_layers: o.GpuLayers = "all",
    override_tensor: o.Overrides = None,
    tensor_split: o.TensorSplit = None,
    no_mmap: o.NoMmap = False,
    no_repack: o.NoRepack = False,
    ctx_size: Context = None,
    ctx_size_min: ContextMin = 4096,
    batch_size: o.BatchSize = o.DEFAULT.n_batch,
    ubatch_size: o.UbatchSize = o.DEFAULT.n_ubatch,
    flash_attn: o.FlashAttention = "auto",
    cache_type_k: o.CacheTypeK = "f16",
    cache_type_v: o.CacheTypeV = "f16",
    no_kv_offload: o.NoKvOffload = False,
    as_json: o.AsJson = False,
) -> None:
    """Find parameters with which a model fits into memory, and uses it well. Ends with 1 if there are none."""
    devices = o.device_list(device)
    found = fit(
        model,
        memory=_budgets(memory),
        margin=margin,
        n_ctx=ctx_size,
        n_ctx_min=ctx_size_min,
        model_params=o.model_params(
            n_gpu_layers,
            overrides=override_tensor,
            tensor_split=tensor_split,
            no_mmap=no_mmap,
            no_repack=no_repack,
            device=device,
        ),
        context_params=o.context_params(
            ContextParams().n_ctx, batch_size, ubatch_size, flash_attn, cache_type_k, cache_type_v, no_kv_offload
        ),
        devices=devices,
        goal=goal.value,
    )
    options = as_options(found.model_params, found.context_params, device)
    if as_json:
        show_json(
            {
                "model_params": carried(found.model_params),
                "context_params": carried(found.context_params),
                "options": options,
                "budgets": dict(found.budgets),
                "explanation": found.explanation,
                "plan": found.plan.to_dict(),
            }
        )
    else:
        show(found)
        show(f"In Python: {found.model_params}, {found.context_params}")
        show(f"Options of moebind plan and bench: {shlex.join(options)}")
    if not found.plan.fits:  # such as where the host, which has no budget of its own, has too little free
        raise typer.Exit(1)


def _budgets(given: list[str] | None) -> str | dict[str, str] | None:
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    pairs = [each.partition("=") for each in given]
    for each, (name, equals, size) in zip(given, pairs, strict=True):
        if not (name and equals and size):
            raise ValueError(f"--memory is {each!r} beside others; it takes DEVICE=SIZE then, such as CUDA0=8GiB")
    return {name: size for name, _, size in pairs}
