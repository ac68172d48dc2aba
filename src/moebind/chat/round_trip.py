"""Whether llama.cpp reads a call as the template writes it into the history, which is how models write calls.

llama.cpp finds out the form of calls by rendering some, and is wrong about a few templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from moebind.chat.prompt import ChatPrompt
from moebind.errors import ChatTemplateError

__all__ = ["misreads_calls"]

_NAME, _ARGUMENTS = "look_up", {"where": "Rome", "n": 12}
_PARAMETERS = {"where": {"type": "string"}, "n": {"type": "integer"}}
_FUNCTION = {
    "name": _NAME,
    "description": "It looks.",
    "parameters": {"type": "object", "properties": _PARAMETERS, "required": ["where"]},
}
_HELLO = {"role": "user", "content": "Hello"}
_CALLED = {"id": "abc123DEF", "type": "function", "function": {"name": _NAME, "arguments": json.dumps(_ARGUMENTS)}}
_CALL: dict[str, object] = {"role": "assistant", "content": "", "tool_calls": [_CALLED]}
#: A call may end with one of these; so many places are tried.
_END = re.compile(r"[>\])}`]+")
_ENDS_MAX = 12


def misreads_calls(render: Callable[[Mapping[str, object]], ChatPrompt]) -> bool:
    """Whether a call that the template writes is not read; False where it writes none.

    ``render`` takes what is asked for: messages, tools, and whether a reply is to begin.
    """
    asked = {
        "messages": [_HELLO],
        "tools": [{"type": "function", "function": _FUNCTION}],
        "add_generation_prompt": True,
    }
    try:
        prompt = render(asked)
    except ChatTemplateError:
        return False
    if not prompt.reads_calls:
        return False
    written = []
    for more in ({}, {"reasoning_content": "Because."}):
        with suppress(ChatTemplateError):
            messages = [_HELLO, {**_CALL, **more}]
            written.append(render({**asked, "messages": messages, "add_generation_prompt": False}).prompt)
    replies = [reply for text in written for reply in _replies(prompt, text)]
    return bool(replies) and not any(_is_the_call(prompt, reply) for reply in replies)


def _replies(prompt: ChatPrompt, text: str) -> Iterator[str]:
    """What of a chat's text may be the reply that calls: it begins where the prompt ends, or after its reasoning."""
    called = text.rfind("Rome")
    start = _begin_alike(text, prompt.prompt)
    whole = start == len(prompt.prompt)
    if not whole and text.rfind("<", 0, start) > text.rfind(">", 0, start):
        start = text.rfind("<", 0, start)  # not in the middle of a tag
    if called < start or _NAME not in text[start:]:
        return
    starts = {start}
    begun = prompt.generation_prompt
    if begun and begun in text[:called]:
        starts.add(text.rindex(begun, 0, called) + len(begun))
    ends = [found.end() for found in _END.finditer(text, called)]
    for begin in sorted(starts):
        for end in dict.fromkeys([*ends[:_ENDS_MAX], *ends[-_ENDS_MAX:], len(text)]):
            yield text[begin:end]
            for tag in () if whole else prompt.thinking_end_tags:
                yield f"Because.{tag}\n{text[begin:end]}"
                yield f"Because.{tag}{text[begin:end].partition(tag)[2]}"


def _begin_alike(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _is_the_call(prompt: ChatPrompt, reply: str) -> bool:
    try:
        calls = [each["function"] for each in prompt.parse(reply)["tool_calls"]]
        return [(each["name"], json.loads(each["arguments"])) for each in calls] == [(_NAME, _ARGUMENTS)]
    except (ChatTemplateError, json.JSONDecodeError):
        return False
