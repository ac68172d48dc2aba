"""Options of commands that write text: how tokens are chosen, what the text is held to, and where it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from moebind.cli.given import RPC, Given
from moebind.cli.parameters import CONTEXT, MODEL, PARAMS, Option

if TYPE_CHECKING:
    from moebind.backend.timings import Timings
    from moebind.context.pieces import Usage

__all__ = [
    "RARE",
    "SAMPLING",
    "Predict",
    "Schema",
    "SchemaFile",
    "Stop",
    "ended",
    "one_text",
    "read_json",
    "read_prompt",
    "read_text",
    "sampling",
]

Predict: TypeAlias = Annotated[
    int,
    typer.Option(
        "--predict", "--n-predict", "-n", metavar="N", min=-1, help="Tokens at most; -1: until the text ends."
    ),
]
PromptOption: TypeAlias = Annotated[
    str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The same as an option.")
]
PromptFile: TypeAlias = Annotated[
    Path | None, typer.Option("--file", "-f", metavar="FILE", help="The same from a file; -: standard input.")
]
Stop: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="A text that ends it; several times for several.", show_default=False),
]
Schema: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--json-schema", "-j", metavar="JSON", help="A schema that the text satisfies; or --json-schema-file."
    ),
]
SchemaFile: TypeAlias = Annotated[
    Path | None, typer.Option("--json-schema-file", "-jf", metavar="FILE", help="The same from a file.", hidden=True)
]


def _sampling(name: str, flags: tuple[str, ...], kind: type, help: str, shown: str, metavar: str = "X") -> Option[Any]:
    """An option that is an argument of ``generate``; its value is checked there."""
    return Option(name, flags, kind, help, shown, (name,), lambda params, value: params, metavar=metavar)


#: As llama.cpp names them. Without any of them, it is always the likeliest token.
SAMPLING: tuple[Option[Any], ...] = (
    _sampling(
        "temperature",
        ("--temp", "--temperature"),
        float,
        "How bold the choice is.",
        "the likeliest token",
    ),
    _sampling("top_k", ("--top-k",), int, "Choose among so many; -1: all.", "40", "N"),
    _sampling("top_p", ("--top-p",), float, "Choose among those that have this much probability.", "0.95"),
    _sampling("min_p", ("--min-p",), float, "Choose among those that are so likely beside the likeliest.", "0.05"),
    _sampling("repeat_penalty", ("--repeat-penalty",), float, "Make what came lately less likely.", "1"),
    _sampling("presence_penalty", ("--presence-penalty",), float, "The same, by a constant.", "0"),
    _sampling("frequency_penalty", ("--frequency-penalty",), float, "The same, by how often it came.", "0"),
    _sampling("seed", ("--seed", "-s"), int, "Repeat a random choice.", "random", "N"),
)


#: Names of options that the help of these commands leaves out; it has others to show.
RARE = {option.name for option in (PARAMS, RPC, *MODEL, *CONTEXT, *SAMPLING)} - {
    *("tuned", "n_gpu_layers", "n_cpu_moe", "cpu_moe", "n_ctx", "threads", "temperature", "seed")
}


def sampling(given: Given) -> dict[str, Any]:
    """The arguments of ``generate`` and ``chat`` that were given."""
    values = {option.name: given.values[option.name] for option in SAMPLING}
    return {name: value for name, value in values.items() if value is not None}


def one_text(
    text: str | None, file: Path | None, names: tuple[str, str], read: Callable[[Path], str] | None = None
) -> str | None:
    """A text that is given itself, or in a file, which ``read`` reads; None: :func:`read_text`.

    Raises
    ------
    ValueError
        If both are given.
    OSError
        If the file cannot be read.
    """
    if text is not None and file is not None:
        raise ValueError(f"{names[0]} and {names[1]} are both given; leave one of them out")
    return text if file is None else (read or read_text)(file)


def one_prompt(text: str | None, option: str | None, file: Path | None) -> str:
    """The text of a command that takes one: an argument, an option, a file, or else standard input.

    Raises
    ------
    ValueError
        If there are several, or there is none: where somebody would have to type it, or nothing comes.
    """
    named = {"an argument": text, "--prompt": option, "--file": file}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"the text is given as {' and as '.join(given)}; it takes one of them")
    if file is None and not given and sys.stdin.isatty():
        raise ValueError("there is no text: give it as an argument, --prompt, --file, or on standard input")
    found = text if option is None else option
    if found is not None:
        return found
    read = read_prompt(file or Path("-"))
    if not read:
        if file is None:
            raise ValueError("standard input has no text: give it as an argument, --prompt or --file")
        raise ValueError(f"{'standard input' if str(file) == '-' else file} has no text")
    return read


def read_json(text: str, what: str) -> Any:
    """What a text says; ``what`` begins the message if it is no JSON.

    Raises
    ------
    ValueError
        If it is none.
    """
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: {error}") from None


def read_text(file: Path) -> str:
    """What is in a file of text, or on standard input (``-``).

    Raises
    ------
    ValueError
        If it is not UTF-8.
    """
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error.reason} at byte {error.start}") from None


def read_prompt(file: Path) -> str:
    """The same for a text to go on from: one line break at the end is the editor's, as for llama.cpp's ``--file``."""
    return read_text(file).removesuffix("\n")


def ended(usage: Usage, stop_reason: str | None, timings: Timings) -> Mapping[str, object]:
    """What a text took, for JSON; ``timings`` are as llama-server has them."""
    return {
        "stop_reason": stop_reason,
        "usage": {**asdict(usage), "total_tokens": usage.total_tokens},
        "timings": {
            "prompt_n": timings.n_p_eval,
            "prompt_ms": round(timings.t_p_eval_ms, 3),
            "prompt_per_second": round(timings.prompt_tokens_per_second, 3),
            "predicted_n": timings.n_eval,
            "predicted_ms": round(timings.t_eval_ms + timings.t_draft_ms, 3),
            "predicted_per_second": round(timings.tokens_per_second, 3),
            **({"draft_n": timings.n_drafted, "draft_n_accepted": timings.n_accepted} if timings.n_drafted else {}),
        },
    }
