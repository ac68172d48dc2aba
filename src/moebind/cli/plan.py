"""``moebind plan``: what a model and a context will take, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moebind.cli import options as o
from moebind.cli.output import show, show_json
from moebind.placement.plan import plan

Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        "-dev",
        metavar="DEVICE",
        help="A device of this machine, or the size of one that is not here, such as 24GiB; several times for several. "
        "none: no device.",
        show_default="this machine's GPUs",
    ),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw it into a file, as well.", show_default=False)
]


def command(
    model: o.ModelPath,
    device: Devices = None,
    n_gpu_layers: o.GpuLayers = "all",
    cpu_moe: o.CpuMoe = False,
    n_cpu_moe: o.NCpuMoe = 0,
    override_tensor: o.Overrides = None,
    tensor_split: o.TensorSplit = None,
    no_mmap: o.NoMmap = False,
    no_repack: o.NoRepack = False,
    ctx_size: o.ContextSize = 4096,
    batch_size: o.BatchSize = o.DEFAULT.n_batch,
    ubatch_size: o.UbatchSize = o.DEFAULT.n_ubatch,
    flash_attn: o.FlashAttention = "auto",
    cache_type_k: o.CacheTypeK = "f16",
    cache_type_v: o.CacheTypeV = "f16",
    no_kv_offload: o.NoKvOffload = False,
    parallel: o.Parallel = 1,
    as_json: o.AsJson = False,
    plot: Plot = None,
    check: Annotated[bool, typer.Option("--check", help="End with 1 if it does not fit.")] = False,
) -> None:
    """Tell what a model and a context would take, device by device. Loads nothing."""
    picture = o.plot_path(plot, "plans")
    devices = o.device_list(device)
    found = plan(
        model,
        o.model_params(n_gpu_layers, cpu_moe, n_cpu_moe, override_tensor, tensor_split, no_mmap, no_repack, device),
        o.context_params(
            ctx_size,
            batch_size,
            ubatch_size,
            flash_attn,
            cache_type_k,
            cache_type_v,
            no_kv_offload,
            parallel=parallel,
        ),
        devices=devices,
    )
    if as_json:
        show_json(found.to_dict())
    else:
        show(found)
    if picture is not None:
        found.plot(picture)
    if check and not found.fits:
        raise typer.Exit(1)
