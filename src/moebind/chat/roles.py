"""Roles of messages: a template may know any, and says nothing about one that it does not know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from moebind._core.shown import shown

__all__ = ["check_roles"]

#: Those of OpenAI's API, and of the templates of large families.
_KNOWN = ("user", "assistant", "system", "tool", "developer", "function", "model")
#: So many characters may be wrong, missing or too many in a role that is misspelt.
_SLIPS = 2


def check_roles(messages: Sequence[Mapping[str, object]], sources: Iterable[str]) -> None:
    """Refuse a role that is misspelt: most templates would render it as one of its own, or leave the message out.

    Parameters
    ----------
    messages
        Whose form was checked.
    sources
        The texts of the templates: a role that one of them writes is known to it.

    Raises
    ------
    ValueError
        If a role is none that is usual, and nearly one that is.
    """
    unusual = {str(each["role"]): index for index, each in reversed([*enumerate(messages)])}
    for known in _KNOWN:
        unusual.pop(known, None)
    if not unusual:
        return
    text = "\n".join(sources)
    for role, index in sorted(unusual.items(), key=lambda one: one[1]):
        if f"'{role}'" in text or f'"{role}"' in text:
            continue
        nearest = min(_KNOWN, key=lambda known: _distance(role.strip().lower(), known))
        if _distance(role.strip().lower(), nearest) <= _SLIPS:
            raise ValueError(f"messages[{index}]['role'] is {shown(role)}; did you mean {nearest!r}?")


def _distance(one: str, other: str) -> int:
    """Characters to change, to add and to take away (Levenshtein); large where the lengths alone say so."""
    if abs(len(one) - len(other)) > _SLIPS:
        return _SLIPS + 1
    row = list(range(len(other) + 1))
    for at, mine in enumerate(one, 1):
        last, row[0] = row[0], at
        for place, theirs in enumerate(other, 1):
            last, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, last + (mine != theirs))
    return row[-1]
