"""Command lines that are wrong: what was given, what is allowed, and what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from typing import Any

from moebind._core.shown import shown
from moebind.cli.other_programs import COMMANDS_ELSEWHERE, RENAMED
from moebind.cli.words import WrongOptionError, is_single, names_of

__all__ = ["check_first", "meant", "no_such", "no_such_option", "usage_sentence"]

#: How much a name must be like another one to be meant; of options that a command lacks, more.
_ALIKE = 0.75
_VERY_ALIKE = 0.85
_SENTENCES = [
    (re.compile(r"Option '(.+)' requires (?:an|\d+) arguments?\.?"), "{0} is the last word; it takes a value"),
    (re.compile(r"Option '(.+)' does not take a value\.?"), "{0} has a value, and takes none"),
]
_TOO_MANY = re.compile(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)", re.DOTALL)
_NO_COMMAND = re.compile(r"No such command '(.*?)'.*", re.DOTALL)


def usage_sentence(error: Any) -> str:
    """The message of an error of typer's, or of click's, about how a command was called.

    Their classes moved between versions, so they are told by their names; what is not known here stays as it is.
    """
    kind, message, ctx = type(error).__name__, error.message, getattr(error, "ctx", None)
    if kind == "NoSuchOption":
        known = [] if ctx is None else [flag for each in ctx.command.params for flag in names_of(each)]
        return no_such("option", error.option_name, known) if message.startswith("No such option") else str(message)
    if kind == "MissingParameter" and ctx is not None and error.param is not None:
        return f"there is no {_metavar(error.param)}: {_takes(ctx)}"
    command = _NO_COMMAND.fullmatch(message)
    if command is not None and hasattr(getattr(ctx, "command", None), "list_commands"):
        return _no_command(command[1], ctx.command.list_commands(ctx), ctx.command_path)  # type: ignore[union-attr]
    extra = _TOO_MANY.fullmatch(message)
    if extra is not None and ctx is not None:
        return f"{shown(extra[1])} is more than there is a place for: {_takes(ctx)}{_quoted(ctx)}"
    for pattern, sentence in _SENTENCES:
        found = pattern.fullmatch(message)
        if found is not None:
            return sentence.format(found[1]) + _choices(ctx, found[1])
    return str(error.format_message())


def _choices(ctx: Any, name: str) -> str:
    """The values of an option that has few, such as on, off and auto."""
    params = [] if ctx is None else [each for each in ctx.command.params if name in names_of(each)]
    *others, last = str(params[0].metavar or "").split("|") if params else [""]
    return f": {', '.join(others)} or {last}" if all(each.islower() for each in (*others, last)) and others else ""


def check_first(word: str, known: Iterable[str]) -> None:
    """Raise where an option of commands stands in the place of a command, before any.

    Raises
    ------
    WrongOptionError
        Unless one of those that are known there may be meant.
    """
    name = word.partition("=")[0]
    if is_single(word) or meant(name, known) is None:
        raise WrongOptionError(f"{no_such('option', name, ())} before a command, as in moebind chat {name} ...")


def _no_command(given: str, known: list[str], group: str) -> str:
    if given.endswith(".gguf"):
        example = "chat" if "chat" in known else known[0]
        return f"{shown(given)} is a model; a command comes before it, as in {group} {example} {shown(given)[1:-1]}"
    elsewhere = COMMANDS_ELSEWHERE.get(given.removeprefix("llama-"))
    if elsewhere is not None and (elsewhere in known or elsewhere.startswith("--")):
        return f"{no_such('command', given, ())}; did you mean {elsewhere}?"
    if meant(given, known) is None:
        return f"{no_such('command', given, ())}: {group} --help shows those that there are"
    return no_such("command", given, known)


def no_such(what: str, given: str, known: Iterable[str]) -> str:
    """The message for an option, or a command, that does not exist."""
    alike = meant(given, known)
    return f"there is no {what} {shown(given)[1:-1]}{f'; did you mean {alike}?' if alike else ''}"


def no_such_option(
    given: str, known: Iterable[str], elsewhere: Iterable[str], answer: Callable[[str], str | None], command: str
) -> str:
    """The message for an option that a command lacks, which may be a slip for one that it lacks, too.

    Parameters
    ----------
    given
        What was given.
    known
        The names of the command's options.
    elsewhere
        Names of other programs' options.
    answer
        What is said of such an option; None where there is nothing to say.
    command
        The command, as it is called.
    """
    names = list(known)
    score, other = _closest(given, [*RENAMED, *(each for each in elsewhere if each.startswith("--"))])
    closer = score >= _VERY_ALIKE and score > _closest(given, names)[0]
    none = no_such("option", given, ())
    told = answer(other) if closer and other not in RENAMED else None
    if told is not None:
        return f"{none}; did you mean {other}? {told[0].upper()}{told[1:]}"
    alike = meant(other if closer else given, names)
    return f"{none}; did you mean {alike}?" if alike else f"{none}: {command} --help-all shows those that there are"


def meant(given: str, known: Iterable[str]) -> str | None:
    """The name that was probably meant; of those that differ only in their writing, the first."""
    names = list(known)
    elsewhere = RENAMED.get(_written(given))
    if elsewhere is not None and elsewhere.split()[0] in names:
        return elsewhere
    score, name = _closest(given, names)
    return name if score >= _ALIKE else None


def _closest(given: str, names: Iterable[str]) -> tuple[float, str]:
    """The name that is most like another one, and how much it is; the first of several."""
    bare = _bare(given)
    scored = [(_likeness(bare, _bare(each)), -at, each) for at, each in enumerate(names)] if bare else []
    best = max(scored, default=(0.0, 0, ""))
    return best[0], best[2]


def _likeness(given: str, name: str) -> float:
    # The beginning of a name, or a name that goes on, is closer than what differs in the middle.
    begins = min(len(given), len(name)) > 2 and (name.startswith(given) or given.startswith(name))
    return max(0.9 if begins and given != name else 0.0, SequenceMatcher(None, given, name, autojunk=False).ratio())


def _written(given: str) -> str:
    return "--" + given.lstrip("-").lower().replace("_", "-")


def _bare(name: str) -> str:
    """Letters and digits: what is left of a name however it is written."""
    return re.sub(r"[-_]", "", name.lower())


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _quoted(ctx: Any) -> str:
    """What to do with a text for which there was no place."""
    texts = {_metavar(each) for each in ctx.command.params if each.param_type_name == "argument"} & {"PROMPT", "TEXT"}
    if texts:
        return "; put a text of several words in quotes"
    return (
        "; a text is given as --prompt TEXT" if any("--prompt" in names_of(each) for each in ctx.command.params) else ""
    )


def _takes(ctx: Any) -> str:
    arguments = [_metavar(each) for each in ctx.command.params if each.param_type_name == "argument"]
    return f"{ctx.command_path} takes {' '.join(arguments) or 'options only'}"
