"""Parameters as options: what :mod:`moebind.cli.options` reads, written."""

from __future__ import annotations

from collections.abc import Sequence

from moebind.enums import FlashAttnType, LoadMode
from moebind.params.params import ContextParams, ModelParams

__all__ = ["options"]

_MODEL, _CONTEXT = ModelParams(), ContextParams()
_FLASH = {FlashAttnType.ENABLED: "on", FlashAttnType.DISABLED: "off"}


def options(model: ModelParams, context: ContextParams, devices: Sequence[str] | None = None) -> list[str]:
    """Words of a command line, unquoted, with which ``moebind plan`` and ``moebind bench`` take these parameters.

    Layers, context and micro-batch are told even where they are the default; the rest only where they are not.
    """
    words = [word for each in devices or () for word in ("--device", each)]
    words += ["-ngl", "all" if model.n_gpu_layers < 0 else str(model.n_gpu_layers)]
    if model.tensor_split is not None:
        words += ["-ts", ",".join(f"{share:.9g}" for share in model.tensor_split)]
    for rule in model.tensor_overrides:
        words += ["-ot", f"{rule.pattern}={rule.target}"]
    words += ["-c", str(context.n_ctx), "-ub", str(context.n_ubatch)]
    if context.n_batch != _CONTEXT.n_batch:
        words += ["-b", str(context.n_batch)]
    if context.flash_attn_type in _FLASH:
        words += ["-fa", _FLASH[context.flash_attn_type]]
    for option, kind, usual in (("-ctk", context.type_k, _CONTEXT.type_k), ("-ctv", context.type_v, _CONTEXT.type_v)):
        if kind != usual:
            words += [option, kind.name.lower()]
    flags = {
        "-nkvo": not context.offload_kqv,
        "--no-mmap": model.load_mode == LoadMode.NONE,
        "--no-repack": not model.use_extra_bufts,
    }
    return [*words, *(flag for flag, given in flags.items() if given)]
