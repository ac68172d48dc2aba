"""Budgets of memory on a command line."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

__all__ = ["Margin", "Memory", "budgets"]

Memory: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="What each device may take, or DEVICE=SIZE, Host for host memory.",
        show_default="what is free",
    ),
]
Margin: TypeAlias = Annotated[
    str | None,
    typer.Option("--margin", metavar="SIZE", help="What stays free.", show_default="1GiB, at most a tenth"),
]


def budgets(given: list[str] | None) -> str | dict[str, str] | None:
    """What ``--memory`` says, as :func:`moebind.fit` takes it."""
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    pairs = [each.partition("=") for each in given]
    for each, (name, equals, size) in zip(given, pairs, strict=True):
        if not (name and equals and size):
            raise ValueError(f"--memory is {each!r} beside others; it takes DEVICE=SIZE then, such as CUDA0=8GiB")
    return {name: size for name, _, size in pairs}
