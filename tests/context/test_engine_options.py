"""Options of an engine's requests are those of a context's, declared for type checkers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from moebind import Context
from moebind.context.engine_options import NOT_TAKEN, ChatOptions, GenerateOptions, check_names


@pytest.mark.parametrize(
    ("options", "call", "first"),
    [(GenerateOptions, Context.generate, "prompt"), (ChatOptions, Context.chat, "messages")],
)
def test_they_are_those_of_contexts(options: Any, call: Callable[..., Any], first: str) -> None:
    taken = {name: each.annotation for name, each in inspect.signature(call).parameters.items()}
    declared = {name: each for kind in options.__mro__ for name, each in getattr(kind, "__annotations__", {}).items()}
    declared = {name: getattr(each, "__forward_arg__", each) for name, each in declared.items()}
    for name in ("self", first, "unknown", *NOT_TAKEN):
        del taken[name]
    assert declared == taken


def test_names() -> None:
    check_names("generate", Context.generate, {"top_k": 1})
    with pytest.raises(TypeError, match="did you mean 'top_k'"):
        check_names("generate", Context.generate, {"top_kk": 1})
    for name, why in NOT_TAKEN.items():
        with pytest.raises(TypeError, match=f"Engine.chat has no argument '{name}': {why[:20]}"):
            check_names("chat", Context.chat, {name: 1})
