"""llama-server's file of presets: the options of each of several models."""

from __future__ import annotations

from collections.abc import Mapping

from moebind._core.shown import shown
from moebind.server.arguments import Settings

__all__ = ["presets", "unwritable"]

#: Letters at which llama-server ends a value: the file has no way to quote them.
_ENDS = ";#"


def presets(models: Mapping[str, Settings]) -> str:
    """The file, with a section for each model, under its name."""
    lines = ["version = 1"]
    for name, options in models.items():
        lines += ["", f"[{name}]"]
        for option, value in options.items():
            lines.append(f"{option} = {str(value).lower() if isinstance(value, bool) else value}")
    return "\n".join([*lines, ""])


def unwritable(options: Settings) -> str | None:
    """Why a model's options cannot be in the file, if they cannot."""
    for option, value in options.items():
        if isinstance(value, str) and not value.isprintable():
            return (
                f"its {option} is {shown(value)}, with characters that llama-server's file of presets cannot have: "
                "rename it"
            )
        if isinstance(value, str) and (any(letter in value for letter in _ENDS) or value != value.strip()):
            return (
                f"its {option} is {shown(value)}, and llama-server's file of presets ends a value at ; and #: rename "
                "it, or serve the model alone"
            )
    return None
