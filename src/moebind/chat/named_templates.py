"""Templates that go by a name whatever the file has."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["CHATML", "CHATML_TOOLS", "CHATML_TOOLS_FILE", "chatml_tools", "named_template"]

#: llama.cpp's own, in Jinja: messages only.
CHATML = "chatml"
#: ChatML with tools and calls in the form of Hermes, which many models were trained on, Qwen's among them.
CHATML_TOOLS = "chatml-tools"
CHATML_TOOLS_FILE = Path(__file__).parent / "chatml_tools.jinja"


def named_template(name: str) -> str | None:
    """What llama.cpp takes for a template of this name; None if there is no such name."""
    return chatml_tools() if name == CHATML_TOOLS else name if name == CHATML else None


@cache
def chatml_tools() -> str:
    """The template :data:`CHATML_TOOLS`."""
    return CHATML_TOOLS_FILE.read_text(encoding="utf-8")
