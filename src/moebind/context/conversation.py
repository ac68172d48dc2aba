"""Chatting: the part of ``Context`` that answers messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, SupportsIndex

from moebind._core import checks
from moebind._core.caller import warn
from moebind.chat.grammar import grammar_sampler, schema_warnings
from moebind.context.generate import Generation
from moebind.context.media_messages import refuse_bitmaps, with_markers
from moebind.context.replies import ChatReply
from moebind.context.stops import Stop
from moebind.context.unknown_arguments import refuse
from moebind.sampling.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Never

    from moebind.context.speculative import Speculative
    from moebind.enums import SpeculativeType
    from moebind.mtmd.projector import MtmdContext
    from moebind.sampling.sampler import Sampler

__all__ = ["Conversation"]


class Conversation(Generation):
    """A context that answers messages. :class:`moebind.Context` is one."""

    def chat(
        self,
        /,
        messages: Sequence[Mapping[str, object]],
        *,
        mtmd: MtmdContext | None = None,
        sampler: Sampler | None = None,
        max_tokens: SupportsIndex | None = None,
        stop: Stop | Sequence[Stop] | None = (),
        temperature: float | None = None,
        top_k: SupportsIndex | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repeat_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        seed: SupportsIndex | None = None,
        logprobs: bool | SupportsIndex | None = None,
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
        speculative: Speculative | SpeculativeType | str | None = None,
        **unknown: Never,
    ) -> ChatReply:
        """Answer messages, piece by piece.

        Parameters
        ----------
        messages, tools, tool_choice, parallel_tool_calls, json_schema, strict, template, reasoning_format, \
        continue_final_message
            The chat, and how to render it: as for ``Model.chat_format``.
        mtmd
            The projector, where messages have pictures or sound: among the parts of a ``content``, a ``Bitmap``,
            or in OpenAI's form ``{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}`` and
            ``{"type": "input_audio", "input_audio": {"data": ..., "format": "wav"}}``. No address is fetched.
        template_kwargs
            Arguments of the template, such as ``{"enable_thinking": False}``.
        sampler, max_tokens, stop, temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, \
        frequency_penalty, seed, logprobs, seq_id, reuse_prefix, speculative
            How to generate the reply: as for :meth:`generate`. The texts that end a reply of this template are added to
            ``stop``.
        use_grammar
            Enforce the grammar of the tools, or of ``json_schema``: what it forbids is never chosen.

        Returns
        -------
        ChatReply
            An iterator of :class:`Piece`; its ``message`` is the parsed reply, and ``deltas()`` gives that bit by bit.

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
        refuse("chat", Conversation.chat, unknown, ". Arguments of the template go into template_kwargs={{{!r}: ...}}")
        settings = Settings(temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty, seed)
        model = self._model
        enforced = checks.boolean("use_grammar", use_grammar)
        pictures = None
        if mtmd is not None:
            self._must_fit(mtmd)
            messages, pictures = with_markers(messages, mtmd)
        else:
            refuse_bitmaps(messages)
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
            template_kwargs=template_kwargs,
        )
        # Control tokens whose text is part of a reply.
        special = [model.str_to_token(text, add_special=False) for text in prompt.preserved_tokens]
        preserved = frozenset(int(tokens[0]) for tokens in special if tokens.size == 1)
        grammar = grammar_sampler(model, prompt, preserved) if enforced else None
        for warning in schema_warnings(prompt, None if tool_choice == "none" else tools, use_grammar):
            warn(warning)
        request = self._request(
            prompt.prompt if pictures is None or not pictures.bitmaps else pictures.put_into(prompt.prompt),
            settings,
            mtmd=mtmd,
            sampler=sampler,
            max_tokens=max_tokens,
            stop=stop,
            logprobs=logprobs,
            grammar=grammar,
            preserved=preserved,
            more_stops=[text for text in prompt.additional_stops if text],
        )
        return ChatReply._of(prompt, *self._generate(request, seq_id, reuse_prefix, speculative))
