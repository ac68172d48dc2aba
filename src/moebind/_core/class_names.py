"""Classes that say what to write in place of a name that they do not have."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from moebind._core.arguments import alike
from moebind._core.other_names import instead_of

__all__ = ["NamedABC", "NamedClass", "as_its_own"]

ClassT = TypeVar("ClassT", bound=type)


def as_its_own(*parts: type) -> Callable[[ClassT], ClassT]:
    """Let Python's messages call the methods of a class's parts by the class's name, which users know.

    ``parts`` are bases of this class alone.
    """

    def decorate(made: ClassT) -> ClassT:
        for part in parts:
            for name, method in vars(part).items():
                function = inspect.unwrap(getattr(method, "__func__", method))
                if inspect.isfunction(function) and not name.startswith("_"):
                    function.__qualname__ = f"{made.__name__}.{name}"
        return made

    return decorate


class NamedClass(type):
    """The type of a class whose missing attributes are explained; its objects are explained by themselves."""

    if not TYPE_CHECKING:  # type checkers would take it for any attribute

        def __getattr__(cls, name: str) -> object:
            hint = "" if name.startswith("_") else instead_of(cls.__name__, name)
            if not hint and not name.startswith("_"):
                meant = alike(name, [each for each in dir(cls) if not each.startswith("_")])
                hint = f"; did you mean {meant!r}?" if meant else ""
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}{hint}", name=name, obj=cls)


class NamedABC(NamedClass, ABCMeta):
    """The same for a class whose bases are abstract."""
