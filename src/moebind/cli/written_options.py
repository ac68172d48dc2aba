"""Parameters written as options of a command line, which :mod:`moebind.cli.parameters` reads."""

from __future__ import annotations

from collections.abc import Sequence

from moebind.cli.parameters import CONTEXT, MODEL
from moebind.params.params import ContextParams, ModelParams

__all__ = ["as_options"]


def as_options(model: ModelParams, context: ContextParams, devices: Sequence[str] | None = None) -> list[str]:
    """Arguments of a command line, unquoted, that give ``moebind plan`` and ``moebind bench`` these parameters.

    Layers, context and micro-batch are written even where they are the default; the rest only where they are not.
    """
    arguments = [part for each in devices or () for part in ("--device", each)]
    arguments += [part for option in MODEL for part in option.write(model)]
    return arguments + [part for option in CONTEXT for part in option.write(context)]
