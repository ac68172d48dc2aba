"""Whether the grammar of a chat holds a reply to what was asked: a JSON schema, a call, a call's arguments.

llama.cpp has a parser for each kind of template, and each reads some of what it is asked and drops the rest. So the
grammar that comes out is what is judged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, cast

from moebind._core.native import ffi, lib
from moebind._core.shown import shown
from moebind.chat.demanded_calls import with_the_call_first
from moebind.chat.named_templates import CHATML_TOOLS
from moebind.chat.prompt import ChatPrompt
from moebind.errors import ChatTemplateError, GrammarError, NativeError
from moebind.sampling.json_rules import Names, with_corrected_rules, with_property_order
from moebind.sampling.json_schema import ANNOTATIONS, json_schema_to_grammar, read_schema

__all__ = ["Orders", "allows_call", "held", "holdable", "names_of", "unheld_arguments"]

#: In the names that llama.cpp's parsers give to the rules of a schema, and to those of calls.
_SCHEMA, _CALL = "response-format", "tool"
#: Rules of values that have none of their own.
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]')
_TYPED = {"integer", "number", "boolean", "null", "object", "array", "value"}
#: Calls one after the other, each between its own marks (Hermes, Qwen): llama-common repeats them whatever it is asked.
_SEVERAL_CALLS = re.compile(r"^(tool-calls ::= )\(tool-call(\??) space\)\+$", re.MULTILINE)
#: What the content of a reply begins with, in templates of which the replies name their recipient.
_LEADS = ("", "all\n")
Orders: TypeAlias = Mapping[tuple[Names, Names], Sequence[Names]]

#: A part of every reply that only has content.
_SAMPLE = '{"a": [1, "b"]}'


def _passes(grammar: str, marks: Iterable[tuple[str, str]], *, root: str = "root", some: bool = False) -> bool:
    """Whether every text, or ``some``, passes a rule with a part of a name in its own, and a text in all it describes.

    False for what is no grammar: what nobody can read holds to nothing.
    """
    if not grammar:
        return False
    names, texts = zip(*marks, strict=True)
    kept = [[ffi.new("char[]", each.encode()) for each in part] for part in (names, texts)]
    try:
        return bool(lib.moebind_grammar_passes(grammar.encode(), root.encode(), kept[0], kept[1], len(names), some))
    except NativeError:
        return False


def held(prompt: ChatPrompt, request: Mapping[str, object], orders: Orders, enforced: bool) -> ChatPrompt:
    """The prompt, with a grammar that holds a reply to what was asked; raises if llama.cpp has none.

    If it need not be ``enforced``, the grammar is what llama.cpp made. ``orders`` are those of properties.
    """
    tools = cast("Sequence[Mapping[str, object]]", request["tools"] or ())
    schema, choice = str(request["json_schema"]), request["tool_choice"]
    prompt = replace(prompt, grammar=with_property_order(with_corrected_rules(prompt.grammar), orders))
    if not enforced:
        return prompt
    if not request["parallel_tool_calls"]:
        prompt = replace(prompt, grammar=_SEVERAL_CALLS.sub(r"\1tool-call\2 space", prompt.grammar))
    if choice == "required":
        if schema:
            raise ValueError("a reply that has to call a tool has no content to hold to json_schema: pass one of them")
        _check_call(prompt.grammar, prompt.grammar_lazy, tools)
        prompt = with_the_call_first(prompt)
    elif schema:
        if choice == "none":
            tools = ()
        if not tools and not prompt.grammar:

            def content(text: str) -> str | None:
                try:
                    return prompt.parse(text)["content"]
                except ChatTemplateError:
                    return None

            prompt = replace(prompt, grammar=_schema_grammar(prompt.generation_prompt, schema, content))
        _check_schema(prompt.grammar, prompt.grammar_lazy, tools)
    return prompt


def _check_schema(grammar: str, lazy: bool, tools: Sequence[Mapping[str, object]]) -> None:
    """Refuse a grammar that does not hold every reply to the JSON schema, or, with ``tools``, to it or to a call."""
    calls = [(_CALL, name) for name in names_of(tools)]
    held = not lazy and _passes(grammar, [(_SCHEMA, ""), *calls])
    possible = [_passes(grammar, [mark], some=True) for mark in ((_SCHEMA, ""), *calls)]
    if held and all(possible):
        return
    if tools:
        raise GrammarError(
            "with this template, llama.cpp's grammar holds a reply to the JSON schema or to the tools, not to both: "
            "leave one of them out, or pass tool_choice='none'"
        )
    raise GrammarError(
        "the JSON schema would not be enforced: llama.cpp's parser of this template's replies leaves it out. Use "
        f"generate() with json_schema, another template, such as template={CHATML_TOOLS!r}, or use_grammar=False"
    )


def _check_call(grammar: str, lazy: bool, tools: Sequence[Mapping[str, object]]) -> None:
    """Refuse a grammar that does not hold every reply to a call of one of the tools."""
    if not tools:
        raise ValueError("tool_choice demands a call, but there are no tools")
    if lazy or not _passes(grammar, [(_CALL, name) for name in names_of(tools)]):
        raise GrammarError(
            "a call would not be enforced: llama.cpp finds no form of a call in this template, or its grammar does not "
            f"demand one. Use a template that knows calls, such as template={CHATML_TOOLS!r}, tool_choice='auto', or "
            "use_grammar=False"
        )


def allows_call(grammar: str, name: str) -> bool:
    """Whether the grammar knows calls of a tool."""
    return _passes(grammar, [(_CALL, name)], some=True)


def _schema_grammar(generation_prompt: str, schema: str, content: Callable[[str], str | None]) -> str:
    """A grammar for replies that are the JSON alone, where llama.cpp's parser knows no schema; empty if there is none.

    ``content`` reads a reply.
    """
    for lead in _LEADS:
        if content(lead + _SAMPLE) == _SAMPLE:
            rules = re.sub(r"^root ::=", f"{_SCHEMA} ::=", json_schema_to_grammar(schema), count=1, flags=re.MULTILINE)
            return f"root ::= {_quoted(generation_prompt + lead)} {_SCHEMA}\n{rules}"
    return ""


def _quoted(text: str) -> str:
    """A text in GBNF, if it is not empty."""
    escaped = text.translate({ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n", ord("\r"): "\\r"})
    return f'"{escaped}"' if text else ""


def holdable(
    tools: Sequence[Mapping[str, object]],
) -> tuple[list[Mapping[str, object]], Orders]:
    """Tools with what of their schemas a grammar can hold a call to, and the orders of properties in these.

    llama-common gives definitions of one name in several tools one rule, so each tool's have names of their own.
    """
    kept: list[Mapping[str, object]] = []
    orders: dict[tuple[Names, Names], list[Names]] = {}
    for at, tool in enumerate(tools):
        function = cast("Mapping[str, object]", tool["function"])
        parameters = cast("Mapping[str, object]", function["parameters"])
        if parameters:
            try:
                read = read_schema(parameters, strict=False, prefix=f"t{at}d")
            except GrammarError as error:
                raise GrammarError(f"tools[{at}]'s parameters: {error}") from None
            parameters = read.document
            for names, each in read.orders.items():
                orders.setdefault(names, []).extend(order for order in each if order not in orders.get(names, ()))
        kept.append({**tool, "function": {**function, "parameters": parameters}})
    return kept, orders


def names_of(tools: Iterable[Mapping[str, object]]) -> list[str]:
    """The names of tools that were checked."""
    return [str(cast("Mapping[str, object]", tool["function"])["name"]) for tool in tools]


def unheld_arguments(grammar: str, name: str, parameters: Mapping[str, object]) -> Iterator[str]:
    """What of a tool's schema the grammar does not hold a call's arguments to, a clause each."""
    rules = dict(re.findall(r"^([a-zA-Z0-9-]+) ::= (.*)$", grammar, re.MULTILINE))
    called = _rule_of(name, rules, r"tool-\d+")
    if f"{called}-schema" in rules:
        yield from _lost(parameters)
        return
    properties = parameters.get("properties") or {}
    required = parameters.get("required") or ()
    if not isinstance(properties, Mapping) or not isinstance(required, Sequence):
        yield from _lost(parameters)
        return
    root = called or "root"
    if not all(_passes(grammar, [("", key)], root=root, some=True) for key in properties if key):
        yield "they may be anything: llama.cpp's grammar of this template's calls leaves the schema out"
        return
    for key, value in properties.items():
        used = rules.get(_rule_of(key, rules, rf"{called}-arg-\d+"), "")
        references = re.findall(r"[a-zA-Z0-9-]+", _LITERAL.sub(" ", used))
        if any(each in _TYPED or each.endswith("-schema") for each in references):
            yield from (f"{shown(key)}: {each}" for each in _lost(value))
        elif isinstance(value, Mapping) and (
            value.get("type", "string") != "string" or value.keys() - ANNOTATIONS - {"type"}
        ):
            yield f"{shown(key)} may be any text or value: this template's calls hold it as it is"
    for key in required:
        if key in properties and key and not _passes(grammar, [("", key)], root=root):
            yield f"{shown(key)} may be left out"


def _lost(schema: object) -> list[str]:
    return read_schema(schema, strict=False).lost if isinstance(schema, Mapping) else []


def _rule_of(name: str, rules: Mapping[str, str], pattern: str) -> str:
    """Of the rules that llama-common numbers, that of a tool or an argument, which writes its name; else empty."""
    found = ""
    for rule in filter(re.compile(pattern).fullmatch, rules):
        texts = [_unquoted(text) for text in _LITERAL.findall(rules[rule]) if text.startswith('"')]
        if name in texts:
            return rule
        # It may be a part of a text, but not of a longer name.
        if not found and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "".join(texts)):
            found = rule
    return found


def _unquoted(text: str) -> str:
    """What a text in GBNF stands for."""
    escapes = {"n": "\n", "r": "\r", "t": "\t"}
    return re.sub(r"\\(.)", lambda found: escapes.get(found[1], found[1]), text[1:-1])
