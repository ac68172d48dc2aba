"""Options that several commands have, with llama.cpp's names where it has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import typer

from moebind._core import checks
from moebind._core.sizes import parse_size
from moebind.backend.devices import Device, devices
from moebind.bench.environment import local_gpus
from moebind.enums import DeviceType, FlashAttnType, GgmlType, LoadMode
from moebind.params.params import CACHE_TYPES, ContextParams, ModelParams
from moebind.placement.plot import check_plot

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
#: No device has less memory; who says less left the unit out.
LEAST = 2**20

#: The options of arguments, as errors name them.
_OPTIONS = {
    "n_layers": "--n-cpu-moe",
    "n_gpu_layers": "--n-gpu-layers",
    "tensor_split": "--tensor-split",
    "tensor_overrides": "--override-tensor",
    "pattern": "--override-tensor",
    "n_ctx": "--ctx-size",
    "n_ctx_min": "--ctx-size-min",
    "n_batch": "--batch-size",
    "n_ubatch": "--ubatch-size",
    "n_seq_max": "--parallel",
    "n_threads": "--threads",
    "n_threads_batch": "--threads",
    "type_k": "--cache-type-k",
    "type_v": "--cache-type-v",
    "flash_attn_type": "--flash-attn",
    "memory": "--memory",
    "margin": "--margin",
    "devices": "--device",
    "placement": "--placement",
    "placements": "--placement",
    "repeats": "--repeats",
    "warmup": "--warmup",
    "n_prompt": "--n-prompt",
    "n_generate": "--n-gen",
    "prompts": "--prompt",
    "worker_threads": "--worker-threads",
    "timeout": "--timeout",
    "output": "--output",
    "host": "--host",
    "port": "--port",
    "api_key": "--api-key-file",
    "allow_network": "--allow-network",
    "one_at_a_time": "--one-at-a-time",
    "fit": "--fit",
    "parallel": "--parallel",
    "mmproj": "--mmproj",
    "models_dir": "--models-dir",
    "path": "MODEL",
    "model_path": "MODEL",
}
_BEGINS = re.compile(r"([a-z_]+)(?:\[[^]]*\])?(?= (?:is|has|holds|names)\b)")
_NAMED = re.compile(r"(?<![\w./'\"=-])[a-z]+_[a-z_]+(?![\w./'\"=(-])")


def model_params(
    n_gpu_layers: str = "all",
    cpu_moe: bool = False,
    n_cpu_moe: int = 0,
    overrides: Sequence[str] | None = None,
    tensor_split: str | None = None,
    no_mmap: bool = False,
    no_repack: bool = False,
    device: Sequence[str] | None = None,
) -> ModelParams:
    """The parameters of a load, from options; the user's own overrides come first, so that they win.

    ``device`` are the values of ``--device``: there are at most as many shares as devices.
    """
    params = ModelParams(n_gpu_layers=_layers(n_gpu_layers), use_extra_bufts=not no_repack)
    if no_mmap:
        params = params.with_load_mode(LoadMode.NONE)
    if tensor_split is not None:
        params = params.with_tensor_split(_shares(tensor_split, device))
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
    """The parameters of a context, from options."""
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


def device_list(given: Sequence[str] | None) -> list[Device | str | int] | None:
    """Names of devices as devices, sizes as bytes."""
    if not given:
        return None
    known = {device.name: device for device in devices()}
    return [known[each] if each in known else _described(each, known) for each in given]


def checked_size(given: str) -> int:
    """The size of a device that is only described."""
    size = parse_size("--device", given)
    if size < LEAST:
        guess = f"{given.strip()}GiB" if given.strip().isdecimal() and size else "24GiB"
        raise ValueError(f"--device is {given!r}, which is {size} bytes; did you mean {guess}?")
    return size


def looks_like_a_size(given: str) -> bool:
    """Whether it begins as a size does; names of devices begin with a letter, and addresses have a colon."""
    return ":" not in given and re.match(r"\s*[\d.]", given, re.ASCII) is not None


def plot_path(given: Path | None, what: str) -> str | None:
    """Where to draw, if that will be possible: looked at before anything is computed."""
    if given is None:
        return None
    path = checks.path("--plot", given)
    check_plot("--plot", path, what)
    return path


def in_options(message: str) -> str:
    """A message of the library's, with the options' names for its arguments'."""
    # Only at the beginning, where words that are also others stand for the argument; what has an underscore anywhere,
    # but not in a path or a call.
    begun = _BEGINS.match(message)
    if begun is not None and begun[1] in _OPTIONS:
        message = f"{_OPTIONS[begun[1]]}{message[begun.end() :]}"
    return _NAMED.sub(lambda found: _OPTIONS.get(found[0], found[0]), message)


def _described(given: str, known: Mapping[str, Device]) -> int:
    if given == "loopback":
        raise ValueError(
            "--device is 'loopback', which only bench takes: it starts a worker process. Describe a device by its size "
            "here, such as 24GiB"
        )
    if looks_like_a_size(given):
        return checked_size(given)
    names = ", ".join(name for name, device in known.items() if device.type != DeviceType.CPU)
    raise ValueError(
        f"--device is {given!r}; it takes the size of a device that need not be here, such as 24GiB, or the name of "
        f"one that is: {names or 'this machine has none'}"
    )


def _shares(given: str, device: Sequence[str] | None) -> list[float]:
    shares = [_number("--tensor-split", each) for each in given.split(",")]
    count = len(device) if device else len(local_gpus())
    several = any(":" in each for each in device or ())  # a server has as many as it has
    if len(shares) > count and not several:
        there = f"there {'is' if count == 1 else 'are'} {count or 'no'} device{'s' * (count != 1)}"
        raise ValueError(
            f"--tensor-split is {given!r}, {len(shares)} share{'s' * (len(shares) != 1)}, and {there}; it takes at "
            "most one for each"
        )
    if not any(shares):
        raise ValueError(f"--tensor-split is {given!r}; at least one share is above 0")
    return shares


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
