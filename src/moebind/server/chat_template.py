"""The chat template among the arguments for llama-server: by name, as Jinja source, or in a file.

llama-server takes any name but ``chatml`` for the source of a template, and would write that name into each prompt.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from moebind._core.shown import shown
from moebind.chat.named_templates import CHATML, CHATML_TOOLS, CHATML_TOOLS_FILE
from moebind.chat.templates import chat_builtin_templates

__all__ = ["with_template"]

_OPTION = "--chat-template"


def with_template(arguments: Sequence[str]) -> list[str]:
    """Arguments for llama-server, with ``--chat-template`` as it understands it.

    moebind's own template takes the place of its name, a file is given as such, and with a name of llama.cpp's own
    templates Jinja is switched off, since they are no Jinja.

    Raises
    ------
    ValueError
        If it is none of these, or there are several.
    """
    places = [at for at, each in enumerate(arguments) if each.replace("_", "-") == _OPTION]
    if not places:
        return list(arguments)
    if len(places) > 1:
        raise ValueError(f"{_OPTION} is given {len(places)} times; give one")
    [at] = places
    if at + 1 == len(arguments):
        raise ValueError(f"{_OPTION} has no value; {_takes()}")
    return [*arguments[:at], *_template(arguments[at + 1]), *arguments[at + 2 :]]


def _template(given: str) -> list[str]:
    if given == CHATML_TOOLS:
        return [f"{_OPTION}-file", str(CHATML_TOOLS_FILE)]
    if given == CHATML or "{" in given:
        return [_OPTION, given]
    if given in chat_builtin_templates():
        return [_OPTION, given, "--no-jinja"]
    if os.path.isfile(given):
        return [f"{_OPTION}-file", given]
    raise ValueError(f"{_OPTION} is {shown(given)}; {_takes()}")


def _takes() -> str:
    return (
        f"it takes {CHATML_TOOLS}, a template of llama.cpp's own ({', '.join(chat_builtin_templates())}), Jinja "
        "source, or a file with that"
    )
