"""Checks of messages and tools, before llama.cpp's template engine sees them.

They are rebuilt from what the engine knows of OpenAI's messages: of the right types, nested no deeper than it can take.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from moebind._core import checks
from moebind._core.shown import shown

__all__ = [
    "INTEGER_MARK",
    "ToolChoice",
    "calls_that_are_no_json",
    "checked_json",
    "checked_messages",
    "checked_tool_choice",
    "checked_tools",
    "with_integers",
    "with_marked_integers",
]

TOOL_CHOICES = ("auto", "none", "required")

#: The engine recurses over what it is given.
NESTING_MAX = 100
#: Stands before an integer that llama.cpp's reader of JSON would make a float of; nobody can know it beforehand.
INTEGER_MARK = f"moebind-integer-{os.urandom(8).hex()}:"
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
#: A text, or a number of which the second group is there if it may be no integer of 64 bits.
_LONG = re.compile(_STRING.pattern + r"|(-?\d{19,})(?![\d.eE])|[-\d.eE+]+", re.DOTALL)
_MARKED = re.compile(rf'\\*"{INTEGER_MARK}(-?\d+)\\*"')


def _with_marks(text: str) -> str:
    """JSON in which integers of more than 64 bits are texts that native/chat/template_numbers.cpp knows."""

    def marked(found: re.Match[str]) -> str:
        if found[1] is None or (len(found[1]) < 30 and -(2**63) <= int(found[1]) < 2**64):
            return found[0]
        return f'"{INTEGER_MARK}{found[1]}"'

    return _LONG.sub(marked, text)


def with_marked_integers(tools: Sequence[Mapping[str, object]] | None) -> Sequence[Mapping[str, object]] | None:
    """Tools as the template gets them: no integer in a schema loses digits."""
    marked: list[Mapping[str, object]] | None = None if tools is None else json.loads(_with_marks(json.dumps(tools)))
    return marked


def with_integers(text: str) -> str:
    """A rendered chat, with the integers of templates that take arguments as text and so never read the marks."""
    return _MARKED.sub(r"\1", text) if INTEGER_MARK in text else text


def checked_json(name: str, value: object, depth: int = 0, any_size: bool = False) -> object:
    """A copy that ``json.dumps`` takes as it is: plain types, no NaN, no lone surrogate, not too deep.

    ``any_size`` is whether integers may have more than 64 bits.

    Raises
    ------
    TypeError, ValueError
        With what is wrong, and where.
    """
    if depth > NESTING_MAX:
        raise ValueError(f"{name} is nested more than {NESTING_MAX} levels deep")
    if isinstance(value, str):
        checks.utf8(name, value)
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not any_size and not -(2**63) <= value < 2**64:
            raise ValueError(f"{name} is {value:.3g}; JSON's integers take 64 bits here")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}; JSON takes finite numbers")
        return float(value)
    if isinstance(value, Mapping):
        copy: dict[str, object] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{name} has the key {shown(key)}; JSON's keys are str")
            checks.utf8(f"a key of {name}", key)
            copy[key] = checked_json(f"{name}[{shown(key)}]" if depth < 4 else name, item, depth + 1, any_size)
        return copy
    if isinstance(value, (list, tuple)):
        return [
            checked_json(f"{name}[{index}]" if depth < 4 else name, item, depth + 1, any_size)
            for index, item in enumerate(value)
        ]
    raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}), which JSON cannot hold")


def _checked_list(name: str, value: object, kinds: str = "a list of dicts") -> Sequence[object]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes {kinds}")
    return value


def _checked_dict(name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes a dict")
    return value


def _checked_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}); it takes a str")
    checks.utf8(name, value)
    return str(value)


def checked_messages(messages: object) -> list[dict[str, object]]:
    """The messages, or an error that says which one is wrong."""
    listed = _checked_list("messages", messages)
    if not listed:
        raise ValueError("messages is empty; it takes at least one message")
    return [_checked_message(f"messages[{index}]", message) for index, message in enumerate(listed)]


def _checked_message(name: str, message: object) -> dict[str, object]:
    given = _checked_dict(name, message)
    if "role" not in given:
        raise ValueError(f"{name} has no 'role'; it takes one, such as 'user'")
    role = _checked_text(f"{name}['role']", given["role"])
    if not role:
        raise ValueError(f"{name}['role'] is empty; it takes one, such as 'user'")
    checked: dict[str, object] = {"role": role}
    calls = given.get("tool_calls")
    content = given.get("content")
    if content is None:
        if not calls and not given.get("reasoning_content"):
            raise ValueError(f"{name} has neither 'content' nor 'tool_calls'")
        content = ""
    if isinstance(content, str):
        checked["content"] = _checked_text(f"{name}['content']", content)
    else:
        parts = _checked_list(f"{name}['content']", content, "text, or a list of dicts")
        checked["content"] = [_checked_part(f"{name}['content'][{index}]", part) for index, part in enumerate(parts)]
    if calls is not None:
        listed = _checked_list(f"{name}['tool_calls']", calls)
        if listed:
            checked["tool_calls"] = [_checked_call(f"{name}['tool_calls'][{i}]", call) for i, call in enumerate(listed)]
    for key in ("reasoning_content", "name", "tool_call_id"):
        value = given.get(key)
        if value is not None:
            checked[key] = _checked_text(f"{name}[{shown(key)}]", value)
    return checked


def _checked_part(name: str, part: object) -> dict[str, object]:
    given = _checked_dict(name, part)
    kind = given.get("type")
    # A media marker is text too, around which llama.cpp adds no line breaks.
    if not isinstance(kind, str) or kind not in {"text", "media_marker"}:
        is_media = isinstance(kind, str) and kind in {"image_url", "input_audio", "image", "audio"}
        seen = ": pictures and sound need mtmd=..., in Context.generate() and chat()" if is_media else ""
        raise ValueError(f"{name} is of type {shown(kind)}; a chat template takes 'text'{seen}")
    return {"type": kind, "text": _checked_text(f"{name}['text']", given.get("text"))}


def _checked_function(name: str, given: Mapping[str, object]) -> Mapping[str, object]:
    kind = given.get("type", "function")
    if kind != "function":
        raise ValueError(f"{name} is of type {shown(kind)}; it takes 'function'")
    if "function" not in given and "name" in given:
        raise ValueError(
            f"{name} has its 'name' outside 'function'; OpenAI's form is {{'type': 'function', 'function': "
            f"{{'name': {shown(given['name'])}, ...}}}}"
        )
    return _checked_dict(f"{name}['function']", given.get("function"))


def _checked_call(name: str, call: object) -> dict[str, object]:
    given = _checked_dict(name, call)
    function = _checked_function(name, given)
    arguments = function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = "{}"  # as many clients write that there are none
    if not isinstance(arguments, str):
        given_arguments = _checked_dict(f"{name}'s arguments", arguments)
        arguments = json.dumps(checked_json(f"{name}'s arguments", given_arguments, any_size=True))
    _checked_text(f"{name}'s arguments", arguments)
    if checks.nesting(_STRING.sub('""', arguments)) > NESTING_MAX:
        raise ValueError(f"{name}'s arguments are nested more than {NESTING_MAX} levels deep")
    called = _checked_text(f"{name}'s name", function.get("name"))
    checked: dict[str, object] = {
        "type": "function",
        "function": {"name": called, "arguments": _with_marks(arguments) if is_json(arguments) else arguments},
    }
    if given.get("id") is not None:
        checked["id"] = _checked_text(f"{name}['id']", given["id"])
    return checked


def is_json(text: str) -> bool:
    """Whether llama.cpp's reader of JSON takes it."""
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # no half characters
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def calls_that_are_no_json(messages: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, dict[str, object]]]:
    """The functions of calls in checked messages whose arguments are no JSON, as after ``max_tokens``, by place."""
    for index, message in enumerate(messages):
        for at, call in enumerate(cast("Sequence[Mapping[str, object]]", message.get("tool_calls", ()))):
            function = cast("dict[str, object]", call["function"])
            if not is_json(str(function["arguments"])):
                yield f"messages[{index}]['tool_calls'][{at}]", function


def checked_tools(tools: object) -> list[dict[str, object]] | None:
    """The tools, or an error that says which one is wrong; None where there are none."""
    if tools is None:
        return None
    checked: list[dict[str, object]] = []
    for index, tool in enumerate(_checked_list("tools", tools)):
        name = f"tools[{index}]"
        function = _checked_function(name, _checked_dict(name, tool))
        called = _checked_text(f"{name}'s name", function.get("name"))
        if not called:
            raise ValueError(f"{name} has an empty name")
        parameters = function.get("parameters")
        schema = {} if parameters is None else _checked_dict(f"{name}'s parameters", parameters)
        description = function.get("description")
        checked.append(
            {
                "type": "function",
                "function": {
                    "name": called,
                    "description": "" if description is None else _checked_text(f"{name}'s description", description),
                    "parameters": checked_json(f"{name}'s parameters", schema, any_size=True),
                },
            }
        )
    return checked or None


class ToolChoice(NamedTuple):
    """Whether a reply may or must call a tool; ``name`` is of the one that it must call."""

    kind: str
    name: str = ""


def checked_tool_choice(choice: object, tools: Sequence[Mapping[str, object]]) -> ToolChoice:
    """``tool_choice``, which may name one of the tools."""
    form = "'auto', 'none', 'required' or {'type': 'function', 'function': {'name': ...}}"
    if isinstance(choice, str):
        if choice not in TOOL_CHOICES:
            raise ValueError(f"tool_choice is {shown(choice)}; it takes {form}")
        return ToolChoice(choice)
    if not isinstance(choice, Mapping):
        raise TypeError(f"tool_choice is {shown(choice)}; it takes {form}")
    name = _checked_text("tool_choice's name", _checked_function("tool_choice", choice).get("name"))
    known = [str(cast("Mapping[str, object]", tool["function"])["name"]) for tool in tools]
    if name not in known:
        listed = ", ".join(known) or "there are none"
        raise ValueError(f"tool_choice names {shown(name)}, which is not among the tools: {listed}")
    return ToolChoice("required", name)
