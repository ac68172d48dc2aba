"""Calls that take parameters: a field that is given to the call itself is told where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ParamSpec, TypeVar

from moebind._core.arguments import explained
from moebind.params.params import ContextParams, ModelParams

__all__ = ["explained_with_fields"]

P = ParamSpec("P")
R = TypeVar("R")


def explained_with_fields(
    *,
    model: str = "Model.load_from_file(path, {})",
    context: str = "model.new_context({})",
    other_names: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function say what to write in place of a keyword argument that it does not have: :func:`explained`.

    Parameters
    ----------
    model, context
        Calls that take such parameters, with ``{}`` in their place: the function itself, if it does.
    other_names
        Names for its arguments that other libraries and programs have; or, of what is no argument, a sentence.
    """
    return explained({ModelParams: model, ContextParams: context}, other_names)
