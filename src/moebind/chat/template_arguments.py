"""Arguments that a user gives a chat template: any name, since each template has its own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping

from moebind._core import checks
from moebind._core.shown import shown
from moebind.chat.messages import checked_json

__all__ = ["merged_arguments", "unread_arguments"]

#: Arguments that callers give to every model, whether its template reads them or not: llama.cpp and transformers do.
_COMMON = {"enable_thinking", "reasoning_effort", "thinking"}


def merged_arguments(kwargs: Mapping[str, object], reserved: Collection[str]) -> dict[str, object]:
    """The arguments of a template, of which some may be in ``template_kwargs``.

    ``reserved`` are the names that the template gets from moebind.

    Raises
    ------
    TypeError, ValueError
    """
    given = dict(kwargs)
    named = given.pop("template_kwargs", None)
    if named is not None and not isinstance(named, Mapping):
        raise TypeError(f"template_kwargs is {shown(named)}; it takes a dict")
    for name, value in (named or {}).items():
        if not isinstance(name, str):
            raise TypeError(f"template_kwargs has {shown(name)}; it takes names of the template's arguments")
        if name in given:
            raise TypeError(f"{shown(name)} is given as a keyword and in template_kwargs")
        if name in reserved:
            raise TypeError(f"template_kwargs has {shown(name)}, which the template gets from moebind")
        given[name] = value
    for name in given:
        checks.text("the name of a template's argument", name)
    if given.get("enable_thinking", True) is None:
        del given["enable_thinking"]  # as if it were not given
    thinking = given.get("enable_thinking", True)
    if not isinstance(thinking, bool):
        raise TypeError(f"enable_thinking is {shown(thinking)}; it takes True or False")
    return {name: checked_json(name, value) for name, value in given.items()}


def unread_arguments(names: Iterable[str], sources: Iterable[str], own: Collection[str]) -> list[str]:
    """Those of the names that the source of no template mentions.

    Raises
    ------
    TypeError
        If one is nearly the name of an argument of moebind's ``own``.
    """
    words = set(re.findall(r"\w+", "\n".join(sources)))
    unread = [name for name in names if name not in words | _COMMON]
    for name in unread:
        alike = difflib.get_close_matches(name, own, 1, 0.85)
        if alike:
            raise TypeError(
                f"there is no argument {shown(name)}, nor does the template mention one; did you mean {alike[0]!r}?"
            )
    return unread
