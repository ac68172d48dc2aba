"""Parameters written as options of a command line, which :mod:`moebind.cli.parameters` reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moebind.cli.parameters import CONTEXT, MODEL
from moebind.params.params import ContextParams, ModelParams
from moebind.placement.described_devices import is_description

__all__ = ["as_options"]


def as_options(model: ModelParams, context: ContextParams, devices: Sequence[str] | None = None) -> list[str]:
    """Arguments of a command line, unquoted, that give ``moebind plan`` and ``moebind bench`` these parameters.

    Layers, context and micro-batch are written even where they are the default; the rest only where they are not.
    Without any device, "all layers" says nothing, and is left out.
    """
    used, names = _used(model, devices or ())
    arguments = [part for each in used for part in ("--device", each)]
    rules = (replace(rule, target=names.get(rule.target, rule.target)) for rule in model.tensor_overrides)
    renamed = model.with_tensor_overrides(list(rules))
    nowhere = used == ["none"] and model.n_gpu_layers < 0
    written = [option for option in MODEL if not (nowhere and option.name == "n_gpu_layers")]
    arguments += [part for option in written for part in option.write(renamed)]
    return arguments + [part for option in CONTEXT for part in option.write(context)]


def _used(model: ModelParams, given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Values of ``--device`` without those that the parameters leave out; what the described ones are then called."""
    if model.devices is None:
        return list(given), {}
    chosen = [device.name for device in model.devices]
    if not chosen:
        return ["none"], {}
    called = [f"GPU{at}" if is_description(each) else each for at, each in enumerate(given)] or chosen
    kept = [(each, name) for each, name in zip(given or chosen, called, strict=True) if name in chosen]
    names = {name: f"GPU{at}" for at, (each, name) in enumerate(kept) if is_description(each)}
    return [each for each, _ in kept], names
