"""The model of a command: a path or an address, or ``-m``, or ``-hf``."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from moebind._core import checks
from moebind._core.shown import shown
from moebind.cli.signatures import ARGUMENT, give_signature, is_list
from moebind.files.hub_address import meant

__all__ = ["Hub", "ModelOption", "check_there", "on_hub", "takes_model"]

Hub = Annotated[
    str | None,
    typer.Option("--hf-repo", "-hf", "-hfr", metavar="OWNER/REPO[:QUANT]", help="A model of the Hugging Face Hub."),
]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="FILE", help="The model, as an option.")]

_REPO = re.compile(r"[^/]+/[^/]+")


def on_hub(repo: str, option: str = "--hf-repo") -> str:
    """The address of what ``-hf`` says, or another option."""
    name, _, quantisation = repo.partition(":")
    if not _REPO.fullmatch(name):
        raise ValueError(
            f"{option} is {shown(repo)}; it takes OWNER/REPO, or OWNER/REPO:QUANT with a type such as Q4_K_M"
        )
    return f"hf://{name}/{quantisation}" if quantisation else f"hf://{name}"


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command have its argument ``model`` from ``MODEL``, ``--model`` or ``--hf-repo``.

    With one of the options, what comes first on the command line belongs to the arguments behind ``model``, which a
    command declares as optional texts, or as a list of texts at the end. Where the default of ``model`` is None, there
    need not be any.
    """
    own = inspect.signature(command, eval_str=True).parameters
    more = {name: is_list(each.annotation) for name, each in own.items() if _is_argument(each) and name != "model"}
    metavars = {name: _metavar(own[name]) for name in more}
    needed = own["model"].default is inspect.Parameter.empty

    @functools.wraps(command)
    def run(*, model_option: str | None, hf_repo: str | None, **values: Any) -> None:
        given = {"MODEL": values["model"], "--model": model_option, "--hf-repo": hf_repo}
        options = [name for name in ("--model", "--hf-repo") if given[name] is not None]
        if len(options) == 2:
            raise ValueError("--model and --hf-repo are both given, and a command takes one model: leave one out")
        if options:
            first, values["model"] = values["model"], given[options[0]] if hf_repo is None else on_hub(hf_repo)
            if first is not None and _is_model(first):
                raise _two_models(first, options[0])
            if first is not None:
                _shift(first, values, more, options[0])
        elif needed and values["model"] is None:
            raise ValueError("there is no model: give a file (MODEL or --model), or --hf-repo")
        elif needed:
            _check_place(values["model"], {name: values[name] for name in more}, metavars)
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
    give_signature(run, parameters)
    return run


def _check_place(model: str, others: Mapping[str, Any], metavars: Mapping[str, str]) -> None:
    """Raise where something else stands in the place of the model, which was forgotten, or comes last."""
    if _is_model(model) or os.path.exists(model):
        return
    order = f"MODEL comes first, as in MODEL {' '.join(metavars.values())}"
    given = [
        each
        for value in others.values()
        if value is not None
        for each in ([value] if isinstance(value, str) else value)
    ]
    for each in given:
        if _is_model(each):
            raise ValueError(f"MODEL is {shown(model)}, which does not exist, and {shown(each)} is behind it: {order}")
    if others and not given:
        raise ValueError(f"MODEL is {shown(model)}, which does not exist: {order}")
    check_there(model)


def check_there(model: str) -> None:
    """Raise where a word is neither the name of a model's file, nor an address, nor a path: somebody else's name."""
    if not _is_model(model) and not os.path.exists(model):
        address = meant(model)
        takes = "it takes a GGUF file, or hf://OWNER/REPO"
        meaning = takes if address is None else f"if it is on the Hugging Face Hub, write {address}"
        raise ValueError(f"MODEL is {shown(model)}, which does not exist; {meaning}")


def _is_model(word: str) -> bool:
    """Whether it names a model, whatever else may stand in its place."""
    return word.endswith(".gguf") or checks.on_hub(word)


def _metavar(argument: inspect.Parameter) -> str:
    found = next(each for each in argument.annotation.__metadata__ if isinstance(each, ARGUMENT))
    return str(found.metavar or argument.name.upper())


def _is_argument(parameter: inspect.Parameter) -> bool:
    """Whether it is given by its place on the command line."""
    return any(isinstance(each, ARGUMENT) for each in getattr(parameter.annotation, "__metadata__", ()))


def _shift(first: str, values: dict[str, Any], names: dict[str, bool], option: str) -> None:
    """Hand the arguments on, each to the next name; ``names`` says which of them are lists."""
    for name, several in names.items():
        if several:
            values[name] = [first, *(values[name] or ())]
            return
        first, values[name] = values[name], first
        if first is None:
            return
    if names:
        raise ValueError(f"{shown(first)} is more than there is a place for beside {option}; put texts in quotes")
    raise _two_models(first, option)


def _two_models(first: str, option: str) -> ValueError:
    return ValueError(f"MODEL is {shown(first)}, and {option} is given too; a command takes one model: leave one out")
