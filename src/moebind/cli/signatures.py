"""Signatures of commands, as typer reads them: with more options, and numbers whose errors are moebind's own."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from moebind._core.shown import shown
from moebind.cli.output import show

__all__ = ["ARGUMENT", "HELP_ALL", "HelpAll", "WrongNumberError", "completed", "give_signature", "is_list"]


class WrongNumberError(TypeError):
    """What was given is no number, or too small a one. No ValueError, since typer would say that in its own words."""


#: What typer.Option and typer.Argument make.
OPTION, ARGUMENT = type(typer.Option()), type(typer.Argument())


def _help_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        for each in ctx.command.params:
            each.hidden = False  # type: ignore[attr-defined]
        show(ctx.get_help())
        raise typer.Exit


def _option(*, hidden: bool) -> Any:
    return typer.Option(
        "--help-all", is_eager=True, callback=_help_all, help="Show all options, and exit.", hidden=hidden
    )


def _help_all_parameter(option: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter("help_all", kind, default=False, annotation=Annotated[bool, option])


#: The option that shows all others, of a command whose help leaves some out.
HELP_ALL = _help_all_parameter(_option(hidden=False))
#: The same where there is nothing more to show: it is taken everywhere.
HelpAll = Annotated[bool, _option(hidden=True)]
_NOTHING_MORE = _help_all_parameter(_option(hidden=True))


def give_signature(function: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> None:
    """Have typer read these parameters in place of a function's own."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {each.name: each.annotation for each in parameters}


def completed(command: Callable[..., None]) -> Callable[..., None]:
    """A command as it is registered: it takes ``--help-all``, and says itself what is wrong with a number."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        if not shows_all:
            values.pop("help_all")
        command(**values)

    own = inspect.signature(command, eval_str=True).parameters
    shows_all = "help_all" in own
    parameters = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_reading(each.annotation)) for each in own.values()
    ]
    give_signature(run, parameters if shows_all else [*parameters, _NOTHING_MORE])
    return run


def is_list(annotation: Any) -> bool:
    """Whether it is of a list, which may be left out."""
    kind = annotation.__origin__
    return list in {get_origin(each) for each in (kind, *get_args(kind))}


def _reading(annotation: Any) -> Any:
    """The annotation of an option, which reads its number here if it takes one."""
    if get_origin(annotation) is not Annotated:
        return annotation
    kind, *more = get_args(annotation)
    plain = [each for each in get_args(kind) if each is not NoneType] if _is_union(kind) else [kind]
    if plain not in ([int], [float]):
        return annotation
    read = [_with_parser(each, plain[0]) if isinstance(each, (OPTION, ARGUMENT)) else each for each in more]
    parts = (kind, *read)
    return Annotated[parts]


def _is_union(kind: Any) -> bool:
    return isinstance(kind, UnionType) or get_origin(kind) is Union


def _with_parser(option: Any, kind: type) -> Any:
    option = copy.copy(option)  # other commands may have the same
    flags = [option.default, *(option.param_decls or ())]  # typer takes the first one for a default until it reads it
    name = next((each for each in flags if isinstance(each, str) and each.startswith("--")), option.metavar)
    low, option.min = option.min, None

    def read(given: Any) -> Any:
        try:
            number = kind(given)
        except ValueError:
            raise WrongNumberError(
                f"{name} is {shown(given)}; it takes {'a whole number' if kind is int else 'a number'}"
            ) from None
        if low is not None and number < low:
            raise WrongNumberError(f"{name} is {number}; it takes {low} or more")
        return number

    option.parser = read
    return option
