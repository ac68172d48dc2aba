"""Chatting: the part of ``Context`` that answers messages."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from moebind._core import checks
from moebind.chat.grammar import constrained, schema_warnings
from moebind.chat.prompt import ChatMessage, ChatPrompt
from moebind.context.generate import Generation, Piece, StopReason
from moebind.context.stops import Stop

if TYPE_CHECKING:
    from moebind.sampling.sampler import Sampler

__all__ = ["ChatReply", "Conversation"]


class ChatReply(Iterator[Piece]):
    """A reply while it is generated: an iterator of pieces. Made by ``Context.chat``.

    Attributes
    ----------
    prompt : ChatPrompt
        The chat as it was rendered.
    text : str
        The text so far, as the model wrote it.
    stop_reason : str or None
        Why it ended; None until then. See :class:`Piece`.
    stop : str, int or None
        Which stop came, as in :class:`Piece`.

    Examples
    --------
    >>> reply = context.chat([{"role": "user", "content": "Hello"}], max_tokens=64)
    >>> for piece in reply:
    ...     print(piece.text, end="", flush=True)
    >>> messages.append(reply.message)
    """

    prompt: ChatPrompt
    text: str
    stop_reason: StopReason | None
    stop: Stop | None
    _pieces: Iterator[Piece]

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("replies are made by Context.chat(messages)")

    @classmethod
    def _of(cls, prompt: ChatPrompt, pieces: Iterator[Piece]) -> ChatReply:
        reply = cls.__new__(cls)
        reply.prompt, reply.text, reply.stop_reason, reply.stop, reply._pieces = prompt, "", None, None, pieces
        return reply

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        self.text += piece.text
        self.stop_reason, self.stop = piece.stop_reason, piece.stop
        return piece

    @property
    def message(self) -> ChatMessage:
        """The reply as a message: a dict with ``role``, ``content``, ``reasoning_content`` and ``tool_calls``.

        You can ask for it at any time; each time the whole reply is parsed. Before the end, and if something other than
        the model ended the reply, it is what is known so far. Append it to the messages for the next call.

        Raises
        ------
        ChatTemplateError
            If the reply does not have the form of the template's replies; ``text`` is what the model wrote.
        """
        return self.prompt.parse(self.text, partial=self.stop_reason != "eog")

    def complete(self) -> ChatMessage:
        """Generate the rest, and return the whole :attr:`message`."""
        for _ in self:
            pass
        return self.message


#: Arguments of other libraries that are samplers here.
_SAMPLERS = {
    "temperature": "temp(0.8)",
    "temp": "temp(0.8)",
    "seed": "dist(seed)",
    "top_k": "top_k(40)",
    "top_p": "top_p(0.95)",
    "min_p": "min_p(0.05)",
    "repeat_penalty": "penalties(64, penalty_repeat=1.1)",
    "presence_penalty": "penalties(64, penalty_present=0.5)",
    "frequency_penalty": "penalties(64, penalty_freq=0.5)",
    "logit_bias": "logit_bias({token: bias})",
    "grammar": "grammar(model, text)",
}
_RENDERING = {
    "messages",
    "template",
    "add_generation_prompt",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "json_schema",
    "strict",
    "reasoning_format",
    "continue_final_message",
    "enforced",
}


def _unknown(name: str) -> str:
    """What to write instead of an argument that chat does not have."""
    if name in _SAMPLERS:
        return (
            f"chat has no argument {name!r}: pass a chain of samplers, such as sampler=Sampler.chain([..., "
            f"Sampler.{_SAMPLERS[name]}, ...]), of which the last one chooses (Sampler.dist(seed))"
        )
    import difflib  # rarely needed

    own = [each for each in inspect.signature(Conversation.chat).parameters if each not in {"self", "unknown"}]
    alike = difflib.get_close_matches(name, own, 1, 0.75)
    if alike:
        return f"chat has no argument {name!r}; did you mean {alike[0]!r}?"
    return (
        f"chat has no argument {name!r}: it takes {', '.join(own)}. Arguments of the template go into "
        f"template_kwargs={{{name!r}: ...}}"
    )


class Conversation(Generation):
    """A context that answers messages. :class:`moebind.Context` is one."""

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        sampler: Sampler | None = None,
        max_tokens: int | None = None,
        stop: Stop | Sequence[Stop] = (),
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_choice: str | Mapping[str, object] = "auto",
        parallel_tool_calls: bool = True,
        json_schema: Mapping[str, object] | str | None = None,
        strict: bool = True,
        template: str | None = None,
        template_kwargs: Mapping[str, object] | None = None,
        reasoning_format: str = "auto",
        continue_final_message: bool = False,
        seq_id: SupportsIndex = 0,
        reuse_prefix: bool = True,
        use_grammar: bool = True,
        **unknown: object,
    ) -> ChatReply:
        """Answer messages, piece by piece.

        Parameters
        ----------
        messages, tools, tool_choice, parallel_tool_calls, json_schema, strict, template, reasoning_format, \
        continue_final_message
            The chat, and how to render it: as for ``Model.chat_format``.
        template_kwargs
            Arguments of the template, such as ``{"enable_thinking": False}``.
        sampler, max_tokens, stop, seq_id, reuse_prefix
            How to generate the reply: as for :meth:`generate`. The texts that end a reply of this template are added to
            ``stop``.
        use_grammar
            Enforce the grammar of the tools, or of ``json_schema``: what it forbids is never chosen.

        Returns
        -------
        ChatReply
            An iterator of :class:`Piece`; its ``message`` is the parsed reply.

        Raises
        ------
        ChatTemplateError
            If the chat cannot be rendered.
        ValueError, TypeError
            If a message has the wrong form, or the prompt does not fit the context.
        GrammarError
            If a grammar cannot enforce the JSON schema or the tools.

        Warns
        -----
        UserWarning
            If the template leaves out the tools, or a tool's schema says something that the grammar does not enforce.

        Examples
        --------
        >>> messages = [{"role": "user", "content": "What is the capital of France?"}]
        >>> print(context.chat(messages, max_tokens=32).complete()["content"])
        """
        if unknown:
            raise TypeError(_unknown(min(unknown)))
        if template_kwargs is not None and not isinstance(template_kwargs, Mapping):
            raise TypeError(f"template_kwargs is {template_kwargs!r}; it takes a dict")
        given: dict[str, Any] = dict(template_kwargs or {})
        for name in given:
            if not isinstance(name, str):
                raise TypeError(f"template_kwargs has {name!r}; it takes names of the template's arguments")
            if name in _RENDERING:
                raise TypeError(f"template_kwargs has {name!r}, which chat() gives the template itself")
        model = self._model
        enforced = checks.boolean("use_grammar", use_grammar)
        prompt = model._chat_format(
            messages,
            template=template,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            json_schema=json_schema,
            strict=strict,
            reasoning_format=reasoning_format,
            continue_final_message=continue_final_message,
            enforced=enforced,
            **given,
        )
        # Control tokens whose text is part of a reply.
        special = [model.str_to_token(text, add_special=False) for text in prompt.preserved_tokens]
        preserved = frozenset(int(tokens[0]) for tokens in special if tokens.size == 1)
        if enforced:
            sampler = constrained(model, prompt, preserved, sampler)
        for warning in schema_warnings(prompt, None if tool_choice == "none" else tools, use_grammar):
            warnings.warn(warning, stacklevel=2)
        pieces = self._generate(
            prompt.prompt,
            preserved,
            sampler=sampler,
            max_tokens=max_tokens,
            stop=stop,
            more_stops=[text for text in prompt.additional_stops if text],
            seq_id=seq_id,
            reuse_prefix=reuse_prefix,
        )
        return ChatReply._of(prompt, pieces)
