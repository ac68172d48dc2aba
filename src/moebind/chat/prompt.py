"""A rendered chat, and how a reply to it is read.

Requests to llama.cpp and its answers are JSON (``native/chat/chat.cpp``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from moebind._core import checks
from moebind._core.native import CData, ffi, lib, own
from moebind.errors import ChatTemplateError, NativeError

__all__ = ["ChatMessage", "ChatPrompt", "ChatTrigger", "ToolCall", "ToolFunction"]

TriggerType = Literal["token", "word", "pattern", "pattern_full"]

#: A reply's brackets may be nested so deeply; no JSON that means something is.
REPLY_NESTING_MAX = 10_000
REPLY_BYTES_MAX = 2**24


class ToolFunction(TypedDict):
    """The function of a :class:`ToolCall`.

    Attributes
    ----------
    name : str
        The tool's name.
    arguments : str
        JSON; incomplete if the reply is unfinished.
    """

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a tool, in a :class:`ChatMessage`: a dict.

    Attributes
    ----------
    id : str
        The id that the message with the result repeats as its ``tool_call_id``.
    type : str
        ``"function"``.
    function : ToolFunction
        A dict with ``name`` and ``arguments``, both str; the arguments are JSON.
    """

    id: str
    type: Literal["function"]
    function: ToolFunction


class ChatMessage(TypedDict):
    """A parsed reply: a dict in the form of OpenAI's messages, which can go back into a chat as it is.

    Attributes
    ----------
    role : str
        ``"assistant"``.
    content : str
        The answer to the user; may be empty.
    reasoning_content : str
        The model's reasoning before the answer; may be empty.
    tool_calls : list of ToolCall
        The tools that it wants to call; often none.
    """

    role: str
    content: str
    reasoning_content: str
    tool_calls: list[ToolCall]


@dataclass(frozen=True)
class ChatTrigger:
    """A text, a pattern or a token that starts a lazy grammar.

    Attributes
    ----------
    type : str
        ``"word"``: this text; ``"pattern"``: a regular expression found in the text, ``"pattern_full"``: one that
        matches all of it; ``"token"``: this token.
    value : str
        The text, expression or token.
    """

    type: TriggerType
    value: str


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered chat, and how to generate and parse a reply to it. Made by ``Model.chat_format``.

    Attributes
    ----------
    prompt : str
        The text for the model. If the tokenizer adds a beginning-of-text token, the text leaves it out.
    grammar : str
        A grammar in GBNF that allows only replies that fit the tools or the JSON schema; empty without those.
    grammar_lazy : bool
        Whether the grammar applies only from a trigger on.
    triggers : tuple of ChatTrigger
        What starts a lazy grammar.
    preserved_tokens : tuple of str
        Special tokens whose text the parser must see.
    additional_stops : tuple of str
        Texts that end the reply.
    generation_prompt : str
        The end of ``prompt``, which begins the reply: it may open the reasoning.
    supports_thinking : bool
        Whether the template supports reasoning.
    thinking_start_tag : str
        What comes before the reasoning; may be empty.
    thinking_end_tags : tuple of str
        What may come after it.
    format : str
        llama.cpp's name for the form of the replies.
    reads_calls : bool
        Whether :meth:`parse` knows a form of calls. False also where the chat has no tools.
    reasoning_format : str
        Whether :meth:`parse` separates the reasoning from the content.
    parser : CData
        llama.cpp's parser for the replies.
    writes_tools : bool
        Whether the template tells the model of the tools; False also where the chat has none.
    misreads_calls : bool
        Whether the template writes calls that :meth:`parse` does not read; False also where the chat has no tools.
    """

    prompt: str
    grammar: str
    grammar_lazy: bool
    triggers: tuple[ChatTrigger, ...]
    preserved_tokens: tuple[str, ...]
    additional_stops: tuple[str, ...]
    generation_prompt: str
    supports_thinking: bool
    thinking_start_tag: str
    thinking_end_tags: tuple[str, ...]
    format: str
    reads_calls: bool
    reasoning_format: str
    parser: CData = field(repr=False, compare=False)
    writes_tools: bool = False
    misreads_calls: bool = False

    def parse(self, text: str, *, partial: bool = False) -> ChatMessage:
        """Parse a reply.

        Parameters
        ----------
        text
            What the model wrote after the prompt.
        partial
            The reply is unfinished: return what is known so far.

        Returns
        -------
        ChatMessage
            A dict with ``role``, ``content``, ``reasoning_content`` and ``tool_calls``.

        Raises
        ------
        ChatTemplateError
            If the reply does not have the form of the template's replies.

        Notes
        -----
        Uses ``common_chat_parse``.
        """
        length = len(checks.utf8("text", text))
        if length > REPLY_BYTES_MAX or checks.nesting(text) > REPLY_NESTING_MAX:
            raise ChatTemplateError(
                f"the reply has {length} bytes and brackets that are nested {checks.nesting(text)} deep; at most "
                f"{REPLY_BYTES_MAX} and {REPLY_NESTING_MAX} are read"
            )
        request = {
            "text": text,
            "partial": checks.boolean("partial", partial),
            "generation_prompt": self.generation_prompt,
        }
        found = exchange(request, lib.own_moebind_chat_parse, self.parser)
        calls: list[ToolCall] = [
            {
                "id": call["id"] or self._call_id(index),
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for index, call in enumerate(found["tool_calls"])
        ]
        return {
            "role": found["role"],
            "content": found["content"],
            "reasoning_content": found["reasoning_content"],
            "tool_calls": calls,
        }

    def _call_id(self, index: int) -> str:
        """An id for a call whose model gives none: another one in each turn, the same in each partial reply.

        Some templates refuse ids that are not nine letters and digits.
        """
        import hashlib  # rarely needed, and slow to import

        return hashlib.sha256(f"{index}\n{self.prompt}".encode("utf-8", "replace")).hexdigest()[:9]


def exchange(request: Mapping[str, object], function: Any, *arguments: CData) -> Any:
    """Send JSON to native/chat/chat.cpp, and read its answer."""
    encoded = json.dumps(request, ensure_ascii=False, allow_nan=False).encode()
    try:
        answer = own(function, *arguments, encoded, len(encoded))
    except NativeError as error:
        raise ChatTemplateError(clean_message(error.message)) from None
    return json.loads(bytes(ffi.buffer(lib.moebind_text_data(answer), lib.moebind_text_size(answer))))


def clean_message(message: str) -> str:
    """An error message of llama.cpp's, without its frame of dashes."""
    lines = [line for line in message.splitlines() if line.strip("- ")]
    return "\n".join(lines) or "the chat template failed without a message"
