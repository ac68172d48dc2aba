"""Objects that cannot be changed, and say how a changed copy is made."""

from __future__ import annotations

import dataclasses
from typing import NoReturn, TypeVar

from moebind._core.arguments import alike
from moebind._core.shown import shown

__all__ = ["changed_by_copying"]

T = TypeVar("T")


def changed_by_copying(kind: type[T]) -> type[T]:
    """Have a frozen dataclass say what to write, where one of its fields is set or deleted."""

    def refuse_set(self: object, name: str, value: object) -> NoReturn:
        raise dataclasses.FrozenInstanceError(_sentence(kind, name, shown(value)))

    def refuse_delete(self: object, name: str) -> NoReturn:
        raise dataclasses.FrozenInstanceError(_sentence(kind, name, "..."))

    # After dataclass, which makes its own.
    for method, refuse in (("__setattr__", refuse_set), ("__delattr__", refuse_delete)):
        refuse.__name__, refuse.__qualname__ = method, f"{kind.__qualname__}.{method}"
        setattr(kind, method, refuse)
    return kind


def _sentence(kind: type, name: str, value: str) -> str:
    names = [field.name for field in dataclasses.fields(kind)]
    found = name if name in names else alike(name, names)
    begin = f"{kind.__name__} cannot be changed"
    if found is None:
        return f"{begin}, and has no {shown(name)}"
    if hasattr(kind, f"with_{found}"):
        call = f"params.with_{found}({value})"
    else:
        call = f"dataclasses.replace(params, {found}={value})"
    return f"{begin}{'' if found == name else f', and has no {shown(name)}'}: params = {call} makes a changed copy"
