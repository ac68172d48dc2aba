"""Prompts that end in the middle of the assistant's message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from moebind.chat.prompt import ChatPrompt
from moebind.errors import ChatTemplateError

__all__ = ["continued"]


def continued(
    prompt: ChatPrompt, messages: Sequence[Mapping[str, object]], without_last: Callable[[], ChatPrompt]
) -> ChatPrompt:
    """A prompt that ends with the last message, and of which the reply is read as one message with it.

    llama.cpp puts a reasoning that is over before the message, also where the template knows none, and then does not
    read it again with some templates. So what it made is tried, and next the template's own beginning of a reply.
    ``without_last`` renders the chat without the last message.
    """
    last = messages[-1]
    if last["role"] != "assistant":
        role = last["role"]
        raise ValueError(f"continue_final_message continues the assistant's message, but the last is the {role}'s")
    content = _text(last["content"])
    key = "content" if content else "reasoning_content"
    wanted = content or str(last.get("reasoning_content", ""))
    for candidate in _candidates(prompt, content, without_last):
        try:
            if candidate.parse("", partial=True)[key] == wanted:  # type: ignore[literal-required]
                return candidate
        except ChatTemplateError:
            pass
    raise ChatTemplateError("llama.cpp cannot read a reply of this template that begins with the message to continue")


def _candidates(prompt: ChatPrompt, content: str, without_last: Callable[[], ChatPrompt]) -> Iterator[ChatPrompt]:
    yield prompt
    if not content:
        return
    plain = without_last()
    yield replace(
        plain,
        prompt=plain.prompt + content,
        generation_prompt=plain.generation_prompt + content,
    )
    for tag in prompt.thinking_end_tags:
        # The prompt is right, but the reasoning that it ends was never begun, which the parser does not know.
        begun = prompt.generation_prompt.replace(tag, prompt.thinking_start_tag + tag, 1)
        yield replace(prompt, generation_prompt=begun)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(part["text"]) for part in cast("Sequence[Mapping[str, object]]", content))
