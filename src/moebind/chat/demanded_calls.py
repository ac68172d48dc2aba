"""Grammars of replies that have to call a tool: reasoning, if the template knows any, and then the call.

llama.cpp's allow any text before the call, so that ``max_tokens`` could end a reply that has not come to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from moebind._core.native import lib
from moebind.chat.prompt import ChatPrompt
from moebind.errors import NativeError

__all__ = ["allows_text_before", "with_the_call_first"]

#: No template's call begins like this.
_TEXT = "Certainly, "
_ROOT = re.compile(r"^root ::= (.*)$", re.MULTILINE)
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[a-zA-Z0-9-]+|[|()])((?:[?*+]|\{[^}]*\})?)')
#: llama-common's rules for any text up to some words.
_ANY_TEXT = re.compile(r"until-\d+")
#: What gpt-oss may say to the user between its reasoning.
_PREAMBLE = re.compile(r"^any ::= preamble \| analysis$", re.MULTILINE)


@dataclass
class _Group:
    """Alternatives in parentheses, each of some items."""

    ways: list[list[_Item]] = field(default_factory=lambda: [[]])
    repeated: str = ""


#: A literal, class or name, with its repetition; or a group.
_Item: TypeAlias = "tuple[str, str] | _Group"
#: What text there still may be.
_SPACE = (r"[ \n]", "{0,4}")


def with_the_call_first(prompt: ChatPrompt) -> ChatPrompt:
    """A prompt whose grammar demands a call, without the text that may come before and after it, where that can be."""
    found = _ROOT.search(prompt.grammar)
    if not found:
        return prompt
    root = _Group()
    _parse(found[1], root)
    _drop_text(root, prompt.thinking_start_tag.strip())
    grammar = prompt.grammar[: found.start(1)] + _written(root) + prompt.grammar[found.end(1) :]
    grammar = _PREAMBLE.sub("any ::= analysis", grammar)
    # Some templates begin the reply with words that only the dropped text could take.
    return replace(prompt, grammar=grammar) if _takes(grammar, prompt.generation_prompt) else prompt


def allows_text_before(prompt: ChatPrompt) -> bool:
    """Whether a reply whose grammar demands a call may begin with text that is no reasoning."""
    begun = prompt.generation_prompt
    start = prompt.thinking_start_tag.strip()
    ends = [tag for tag in prompt.thinking_end_tags if tag]
    if start and begun.rfind(start) > max((begun.rfind(tag) for tag in ends), default=-1):
        return any(_takes(prompt.grammar, f"{begun}{tag}{_TEXT}") for tag in ends[:1])
    return _takes(prompt.grammar, begun + _TEXT)


def _takes(grammar: str, text: str) -> bool:
    """Whether a text of the grammar may begin so."""
    try:
        return not text or bool(lib.moebind_grammar_takes(grammar.encode(), text.encode()))
    except NativeError:
        return False


def _parse(rule: str, into: _Group) -> None:
    stack = [into]
    for token in _TOKEN.finditer(rule):
        if token[1] == "(":
            inner = _Group()
            stack[-1].ways[-1].append(inner)
            stack.append(inner)
        elif token[1] == ")":
            stack.pop().repeated = token[2]
        elif token[1] == "|":
            stack[-1].ways.append([])
        else:
            stack[-1].ways[-1].append((token[1], token[2]))


def _drop_text(group: _Group, tag: str) -> bool:
    """Drop any text but space that is no reasoning, which comes behind its ``tag``; whether there was some."""
    dropped = False
    for way in group.ways:
        kept: list[_Item] = []
        for item in way:
            if isinstance(item, _Group):
                # What may be left out is only there for the text in it.
                if _drop_text(item, tag) and item.repeated in {"?", "*"}:
                    continue
            elif _ANY_TEXT.fullmatch(item[0]):
                at = _tag_before(kept, tag)
                if at is None:
                    dropped = True
                    kept.append(_SPACE)
                    continue
                kept[at] = (kept[at][0], "")  # type: ignore[index]  # it is no group
            kept.append(item)
        way[:] = kept
    return dropped


def _tag_before(items: Sequence[_Item], tag: str) -> int | None:
    """Where the tag of reasoning stands that comes last, with nothing but space behind it."""
    for at in reversed(range(len(items))):
        item = items[at]
        if isinstance(item, _Group):
            return None
        if tag and tag in _text(item[0]):
            return at
        if item[0] not in {"space", _SPACE[0]} and _text(item[0]).strip():
            return None
    return None


def _text(literal: str) -> str:
    """The text of a literal; a name or a class is its own."""
    if not literal.startswith('"'):
        return literal
    escapes = {"n": "\n", "r": "\r", "t": "\t"}
    return re.sub(r"\\(.)", lambda found: escapes.get(found[1], found[1]), literal[1:-1])


def _written(group: _Group) -> str:
    return " | ".join(" ".join(_pieces(way)) for way in group.ways)


def _pieces(way: Sequence[_Item]) -> Iterator[str]:
    for item in way:
        yield f"({_written(item)}){item.repeated}" if isinstance(item, _Group) else "".join(item)
