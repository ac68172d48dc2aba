"""Options that several commands have, with llama.cpp's names where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, TypeAlias, TypeVar

import typer

from moebind.enums import FlashAttnType, GgmlType, LoadMode
from moebind.params import CACHE_TYPES, ContextParams, ModelParams
from moebind.process import Device, devices

EnumT = TypeVar("EnumT", bound=IntEnum)

_FLASH = {"auto": FlashAttnType.AUTO, "on": FlashAttnType.ENABLED, "off": FlashAttnType.DISABLED}
_CACHE = {kind.name.lower(): kind for kind in CACHE_TYPES}

ModelPath: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, or the first one of a split model, or hf://OWNER/REPO/FILE.gguf on the Hugging Face Hub.",
        show_default=False,
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON.")]

GpuLayers: TypeAlias = Annotated[
    str, typer.Option("--n-gpu-layers", "-ngl", metavar="N", help="Layers on devices, counted from the last; or all.")
]
CpuMoe: TypeAlias = Annotated[bool, typer.Option("--cpu-moe", "-cmoe", help="Keep all experts in host memory.")]
NCpuMoe: TypeAlias = Annotated[
    int, typer.Option("--n-cpu-moe", "-ncmoe", metavar="N", help="Keep experts of the first N layers in host memory.")
]
Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--override-tensor",
        "-ot",
        metavar="PATTERN=TARGET",
        help="Send tensors whose names match to a device or buffer type. Can be given several times; the first "
        "that matches wins.",
        show_default=False,
    ),
]
TensorSplit: TypeAlias = Annotated[
    str | None,
    typer.Option("--tensor-split", "-ts", metavar="N,N", help="The share of each device.", show_default=False),
]
NoMmap: TypeAlias = Annotated[bool, typer.Option("--no-mmap", help="Read the weights instead of mapping the file.")]
NoRepack: TypeAlias = Annotated[bool, typer.Option("--no-repack", help="Leave weights in host memory as they are.")]

ContextSize: TypeAlias = Annotated[
    int,
    typer.Option("--ctx-size", "--n-ctx", "-c", metavar="N", help="Tokens of context; 0: as it was trained."),
]
BatchSize: TypeAlias = Annotated[int, typer.Option("--batch-size", "-b", metavar="N", help="Tokens of one batch.")]
UbatchSize: TypeAlias = Annotated[
    int, typer.Option("--ubatch-size", "-ub", metavar="N", help="Tokens that are computed at once.")
]
FlashAttention: TypeAlias = Annotated[
    str, typer.Option("--flash-attn", "-fa", metavar="on|off|auto", help="Fused attention.")
]
CacheTypeK: TypeAlias = Annotated[
    str, typer.Option("--cache-type-k", "-ctk", metavar="TYPE", help="Type of cached keys, such as q8_0.")
]
CacheTypeV: TypeAlias = Annotated[
    str, typer.Option("--cache-type-v", "-ctv", metavar="TYPE", help="Type of cached values.")
]
NoKvOffload: TypeAlias = Annotated[bool, typer.Option("--no-kv-offload", "-nkvo", help="Keep the cache on the host.")]
NoOpOffload: TypeAlias = Annotated[
    bool, typer.Option("--no-op-offload", help="Compute on the CPU what has its weights in host memory.")
]
Parallel: TypeAlias = Annotated[int, typer.Option("--parallel", "-np", metavar="N", help="Sequences side by side.")]
Threads: TypeAlias = Annotated[
    int | None, typer.Option("--threads", "-t", metavar="N", help="Threads of the CPU.", show_default="one per core")
]

DEFAULT = ContextParams()


def model_params(
    n_gpu_layers: str = "all",
    cpu_moe: bool = False,
    n_cpu_moe: int = 0,
    overrides: Sequence[str] | None = None,
    tensor_split: str | None = None,
    no_mmap: bool = False,
    no_repack: bool = False,
) -> ModelParams:
    """What the options say about the load; the user's own overrides come first, so that they win."""
    params = ModelParams(n_gpu_layers=_layers(n_gpu_layers), use_extra_bufts=not no_repack)
    if no_mmap:
        params = params.with_load_mode(LoadMode.NONE)
    if tensor_split is not None:
        params = params.with_tensor_split([_number("--tensor-split", each) for each in tensor_split.split(",")])
    for rule in overrides or ():
        pattern, equals, target = rule.rpartition("=")
        if not equals or not pattern or not target:
            raise ValueError(f"--override-tensor is {rule!r}; it takes PATTERN=TARGET, such as ffn_up_exps=CPU")
        params = params.with_tensor_override(pattern, target)
    params = params.with_n_cpu_moe(n_cpu_moe)
    return params.with_cpu_moe_all() if cpu_moe else params


def context_params(
    n_ctx: int,
    n_batch: int = DEFAULT.n_batch,
    n_ubatch: int = DEFAULT.n_ubatch,
    flash_attn: str = "auto",
    type_k: str = "f16",
    type_v: str = "f16",
    no_kv_offload: bool = False,
    no_op_offload: bool = False,
    parallel: int = 1,
    threads: int | None = None,
) -> ContextParams:
    """What the options say about the context."""
    params = ContextParams(
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        flash_attn_type=_choice("--flash-attn", flash_attn, _FLASH),
        type_k=cache_type("--cache-type-k", type_k),
        type_v=cache_type("--cache-type-v", type_v),
        offload_kqv=not no_kv_offload,
        op_offload=not no_op_offload,
        n_seq_max=parallel,
    )
    return params if threads is None else params.with_n_threads(threads).with_n_threads_batch(threads)


def cache_type(option: str, name: str) -> GgmlType:
    """The type of that name, such as ``"q8_0"``."""
    return _choice(option, name, _CACHE)


def device_list(given: Sequence[str] | None) -> list[Device | str] | None:
    """Names of devices as devices; sizes stay texts."""
    if not given:
        return None
    known = {device.name: device for device in devices()}
    return [known.get(each, each) for each in given]


def _choice(option: str, given: str, allowed: dict[str, EnumT]) -> EnumT:
    if given.lower() not in allowed:
        raise ValueError(f"{option} is {given!r}; it takes one of {', '.join(allowed)}")
    return allowed[given.lower()]


def _layers(given: str) -> int:
    if given == "all":
        return -1
    try:
        return int(given)
    except ValueError:
        raise ValueError(f"--n-gpu-layers is {given!r}; it takes a number of layers, or all") from None


def _number(option: str, given: str) -> float:
    try:
        return float(given)
    except ValueError:
        raise ValueError(f"{option} has {given!r}; it takes numbers with commas between them, such as 3,1") from None
