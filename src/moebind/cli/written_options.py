"""Parameters written as options of a command line, which :mod:`moebind.cli.options` reads."""

from __future__ import annotations

from collections.abc import Sequence

from moebind.cli.options import looks_like_a_size
from moebind.enums import FlashAttnType, LoadMode
from moebind.params.params import ContextParams, ModelParams

__all__ = ["as_options"]

_DEFAULTS = ContextParams()
_FLASH = {FlashAttnType.ENABLED: "on", FlashAttnType.DISABLED: "off"}


def as_options(model: ModelParams, context: ContextParams, devices: Sequence[str] | None = None) -> list[str]:
    """Arguments of a command line, unquoted, that give ``moebind plan`` and ``moebind bench`` these parameters.

    Layers, context and micro-batch are written even where they are the default; the rest only where they are not.
    """
    used, names = _used(model, devices or ())
    arguments = [part for each in used for part in ("--device", each)]
    arguments += ["-ngl", "all" if model.n_gpu_layers < 0 else str(model.n_gpu_layers)]
    if model.tensor_split is not None:
        arguments += ["-ts", ",".join(f"{share:.9g}" for share in model.tensor_split)]
    for rule in model.tensor_overrides:
        arguments += ["-ot", f"{rule.pattern}={names.get(rule.target, rule.target)}"]
    arguments += ["-c", str(context.n_ctx), "-ub", str(context.n_ubatch)]
    if context.n_batch != _DEFAULTS.n_batch:
        arguments += ["-b", str(context.n_batch)]
    if context.flash_attn_type in _FLASH:
        arguments += ["-fa", _FLASH[context.flash_attn_type]]
    for option, kind, usual in (("-ctk", context.type_k, _DEFAULTS.type_k), ("-ctv", context.type_v, _DEFAULTS.type_v)):
        if kind != usual:
            arguments += [option, kind.name.lower()]
    flags = {
        "-nkvo": not context.offload_kqv,
        "--no-mmap": model.load_mode == LoadMode.NONE,
        "--no-repack": not model.use_extra_bufts,
    }
    return [*arguments, *(flag for flag, given in flags.items() if given)]


def _used(model: ModelParams, given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Values of ``--device`` without those that the parameters leave out; what the described ones are then called."""
    if model.devices is None:
        return list(given), {}
    chosen = [device.name for device in model.devices]
    if not chosen:
        return ["none"], {}
    called = [f"GPU{at}" if looks_like_a_size(each) else each for at, each in enumerate(given)] or chosen
    kept = [(each, name) for each, name in zip(given or chosen, called, strict=True) if name in chosen]
    names = {name: f"GPU{at}" for at, (each, name) in enumerate(kept) if looks_like_a_size(each)}
    return [each for each, _ in kept], names
