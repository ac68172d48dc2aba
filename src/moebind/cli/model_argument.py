"""The model of a command: a path or an address, or ``-m``, or ``-hf``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import typer

__all__ = ["Hub", "ModelOption", "on_hub", "takes_model"]

Hub = Annotated[
    str | None,
    typer.Option("--hf-repo", "-hf", metavar="OWNER/REPO[:QUANT]", help="A model of the Hugging Face Hub."),
]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="FILE", help="The model, as an option.")]


def on_hub(repo: str) -> str:
    """The address of what ``-hf`` says."""
    name, _, quantisation = repo.partition(":")
    return f"hf://{name}/{quantisation}" if quantisation else f"hf://{name}"


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command have its argument ``model`` from ``MODEL``, ``--model`` or ``--hf-repo``.

    With one of the options, what comes first on the command line belongs to the arguments behind ``model``, which a
    command declares as optional texts, or as a list of texts at the end. Where the default of ``model`` is None, there
    need not be any.
    """
    own = inspect.signature(command, eval_str=True).parameters
    more = {name: _is_list(each) for name, each in own.items() if _is_argument(each) and name != "model"}
    needed = own["model"].default is inspect.Parameter.empty

    @functools.wraps(command)
    def run(*, model_option: str | None, hf_repo: str | None, **values: Any) -> None:
        given = {"MODEL": values["model"], "--model": model_option, "--hf-repo": hf_repo}
        options = [name for name in ("--model", "--hf-repo") if given[name] is not None]
        if len(options) == 2:
            raise ValueError("--model and --hf-repo are both given; a command takes one model")
        if options:
            first, values["model"] = values["model"], given[options[0]] if hf_repo is None else on_hub(hf_repo)
            if first is not None:
                _shift(first, values, more, options[0])
        elif needed and values["model"] is None:
            raise ValueError("there is no model: give a file (MODEL or --model), or --hf-repo")
        command(**values)

    parameters: list[inspect.Parameter] = []
    for name, each in own.items():
        keyword = each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        if name == "model":
            parts = (str | None, *each.annotation.__metadata__)
            keyword = keyword.replace(default=None, annotation=Annotated[parts])
        parameters.append(keyword)
    after = 1 + max(at for at, each in enumerate(parameters) if _is_argument(each))
    options = {"model_option": ModelOption, "hf_repo": Hub}
    parameters[after:after] = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in options.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _is_argument(parameter: inspect.Parameter) -> bool:
    """Whether it is given by its place on the command line."""
    return any(isinstance(each, _ARGUMENT) for each in getattr(parameter.annotation, "__metadata__", ()))


_ARGUMENT = type(typer.Argument())


def _is_list(argument: inspect.Parameter) -> bool:
    kind = argument.annotation.__origin__
    return list in {get_origin(each) for each in (kind, *get_args(kind))}


def _shift(first: str, values: dict[str, Any], names: dict[str, bool], option: str) -> None:
    """Hand the arguments on, each to the next name; ``names`` says which of them are lists."""
    for name, is_list in names.items():
        if is_list:
            values[name] = [first, *(values[name] or ())]
            return
        first, values[name] = values[name], first
        if first is None:
            return
    raise ValueError(f"MODEL is {first!r}, and {option} is given too; a command takes one model")
