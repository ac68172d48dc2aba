"""Chats: the part of ``Model`` that renders templates and reads replies.

llama.cpp's own Jinja engine renders, and the parser that it makes for the template reads.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

from moebind._core import checks
from moebind._core.caller import warn
from moebind._core.model_base import ModelBase
from moebind._core.native import CData, decoded, ffi, lib, own
from moebind._core.shown import shown
from moebind.chat.continuation import continued
from moebind.chat.enforcement import Orders, held, holdable, names_of
from moebind.chat.messages import (
    INTEGER_MARK,
    calls_that_are_no_json,
    checked_messages,
    checked_tool_choice,
    checked_tools,
    with_integers,
    with_marked_integers,
)
from moebind.chat.named_templates import CHATML_TOOLS, named_template
from moebind.chat.prompt import ChatMessage, ChatPrompt, ChatTrigger, clean_message, exchange
from moebind.chat.roles import check_roles
from moebind.chat.round_trip import misreads_calls
from moebind.chat.template_arguments import merged_arguments, unread_arguments
from moebind.errors import ChatTemplateError, NativeError
from moebind.sampling.json_schema import read_schema

__all__ = ["ChatTemplates", "chat_builtin_templates"]

#: The parser of a template takes stack and time for each character.
TEMPLATE_BYTES_MAX = 2**17
_REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")
_KEY = "tokenizer.chat_template"
#: What a template, or its rendering, gets from moebind.
RENDERING = [
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
    "template_kwargs",
]
#: What a chat without tools and a schema asks for.
_WITHOUT_TOOLS = {"tools": None, "tool_choice": "none", "json_schema": ""}
#: So many templates of a model are kept ready.
_READY_MAX = 8


class ChatTemplates(ModelBase):
    """The part of a model that renders chats and reads replies. :class:`moebind.Model` has it."""

    #: Templates that are ready to be rendered, by their source; "" is what the file says.
    _ready: dict[str, CData] | None = None
    #: Whether calls are misread, by the same.
    _misread: Mapping[str, bool] = MappingProxyType({})

    @property
    def chat_template_names(self) -> tuple[str, ...]:
        """The names of the chat templates in the file; ``"default"`` is the one without a name."""
        named = tuple(key[len(_KEY) + 1 :] for key in self.meta if key.startswith(_KEY + "."))
        return ("default", *named) if _KEY in self.meta else named

    def chat_template(self, name: str | None = None) -> str:
        """The file's Jinja template for chats (``llama_model_chat_template``).

        Parameters
        ----------
        name
            One of :attr:`chat_template_names`; None: the default one.

        Raises
        ------
        ChatTemplateError
            If there is none.
        """
        encoded = ffi.NULL if name is None or name == "default" else checks.text("name", name)
        found = lib.llama_model_chat_template(self._open(), encoded)
        if not found:
            raise ChatTemplateError(
                f"{self.path} has no chat "
                f"template{'' if name is None else f' named {shown(name)}'}{self._other_templates()}"
            )
        return decoded(found)

    def _other_templates(self) -> str:
        names = self.chat_template_names
        if names:
            return (
                f": it has {', '.join(names)}; 'chatml', 'chatml-tools' and those of chat_builtin_templates() work "
                "with any model"
            )
        return ": give one, as Jinja source, 'chatml' or 'chatml-tools'"

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        **kwargs: object,
    ) -> str:
        r"""Render a chat as text of the kind that the model was trained on.

        Parameters
        ----------
        messages, template, add_generation_prompt, tools, kwargs
            As for :meth:`chat_format`, which returns more than the text.

        Returns
        -------
        str
            The prompt. If the tokenizer adds a beginning-of-text token, the prompt leaves it out.

        Raises
        ------
        ChatTemplateError
            If there is no such template, or it has an error or refuses the messages.
        ValueError, TypeError
            If a message or tool has the wrong form; the error says which.

        Notes
        -----
        Uses ``common_chat_templates_apply``, with Jinja.

        Examples
        --------
        >>> messages = [{"role": "user", "content": "Hello"}]
        >>> model.apply_chat_template(messages, enable_thinking=False)
        '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n'
        """
        given: dict[str, Any] = {"parallel_tool_calls": False, **kwargs}
        rendered = self._chat_format(
            messages,
            template=template,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            enforced=True,
            **given,
        )
        return rendered.prompt

    def chat_format(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_choice: str | Mapping[str, object] = "auto",
        parallel_tool_calls: bool = False,
        json_schema: Mapping[str, object] | str | None = None,
        strict: bool = True,
        reasoning_format: str = "auto",
        continue_final_message: bool = False,
        **kwargs: object,
    ) -> ChatPrompt:
        """Render a chat, and tell what a reply to it looks like.

        Parameters
        ----------
        messages
            As in OpenAI's API: dicts with ``role`` and ``content`` and, if they apply, ``tool_calls``,
            ``tool_call_id``, ``name`` and ``reasoning_content``. The content is a str, or a list of
            ``{"type": "text", "text": ...}``; the type ``"media_marker"`` is for what mtmd will replace.
        template
            None: the file's own; it may have a separate one for tools. Text with ``{{``, ``{%`` or ``{#`` in it is
            Jinja source. Anything else is a name: one of :attr:`chat_template_names`, ``"chatml"``, ``"chatml-tools"``
            (the same with tools, as Hermes and Qwen write them), or one of :func:`moebind.chat_builtin_templates`,
            which support neither tools nor arguments.
        add_generation_prompt
            End with the beginning of the reply.
        tools
            Functions that the model may call, as in OpenAI's API:
            ``{"type": "function", "function": {"name": ..., "description": ..., "parameters": {JSON schema}}}``.
        tool_choice
            ``"auto"``, ``"none"`` or ``"required"``: whether the grammar allows or demands a call.
            ``{"type": "function", "function": {"name": ...}}`` demands one of this tool.
        parallel_tool_calls
            Whether one reply may contain several calls.
        json_schema
            A schema for the content of the reply; as for :func:`moebind.json_schema_to_grammar`, which says what raises
            ``GrammarError``.
        strict
            False: leave out what of the JSON schema a grammar cannot hold a reply to, with a warning that says what.
        reasoning_format
            With ``"auto"`` (the same as ``"deepseek"``), :meth:`ChatPrompt.parse` separates the reasoning from the
            content; ``"none"`` leaves it there.
        continue_final_message
            Continue the last message, which is the assistant's, instead of answering it.
        **kwargs
            Arguments of the template, such as ``enable_thinking=False``: anything that JSON can hold. They may also be
            in a dict, ``template_kwargs={"enable_thinking": False}``, as for :meth:`Context.chat`.

        Returns
        -------
        ChatPrompt

        Raises
        ------
        ChatTemplateError
            If there is no such template, or it has an error or refuses the messages.
        ValueError, TypeError
            If a message or tool has the wrong form; the error says which.
        GrammarError
            If llama.cpp's grammar for this template would not hold a reply to the schema, or to a demanded call.

        Warns
        -----
        UserWarning
            If the template does not mention an argument.

        Notes
        -----
        Uses ``common_chat_templates_apply``. A template runs with limits (128 KiB of source, 16 MiB of text,
        100,000 items in a list, 10,000 in a range, 1000 levels of statements and expressions) and can be stopped with
        Ctrl-C. llama.cpp runs it some fifty times to find out what its replies look like. The last eight templates are
        kept ready.
        """
        given: dict[str, Any] = kwargs
        return self._chat_format(
            messages,
            template=template,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            json_schema=json_schema,
            strict=strict,
            reasoning_format=reasoning_format,
            continue_final_message=continue_final_message,
            enforced=True,
            **given,
        )

    def _chat_format(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_choice: str | Mapping[str, object] = "auto",
        parallel_tool_calls: bool = True,
        json_schema: Mapping[str, object] | str | None = None,
        strict: bool = True,
        reasoning_format: str = "auto",
        continue_final_message: bool = False,
        enforced: bool,
        **kwargs: object,
    ) -> ChatPrompt:
        """See :meth:`chat_format`; with ``enforced``, the grammar has to hold a reply to what was asked."""
        wanted = checked_tools(tools)
        chosen = checked_tool_choice(tool_choice, wanted or [])
        checked = checked_messages(messages)
        strict = checks.boolean("strict", strict)
        read = None if json_schema is None else read_schema(json_schema, strict=strict, named=True)
        for each in () if read is None else read.lost:
            warn(f"the grammar does not hold a reply to all of the JSON schema: {each}")
        builtin = self._is_builtin(template)
        check_roles(checked, [] if builtin else self._sources(template))
        arguments = merged_arguments(kwargs, RENDERING)
        request = {
            "use_jinja": not builtin,
            "messages": checked,
            "tools": wanted,
            "tool_choice": "required" if chosen.name else chosen.kind,
            "parallel_tool_calls": checks.boolean("parallel_tool_calls", parallel_tool_calls),
            "json_schema": "" if read is None else json.dumps(read.document),
            "add_generation_prompt": checks.boolean("add_generation_prompt", add_generation_prompt),
            "continue_final_message": checks.boolean("continue_final_message", continue_final_message),
            "reasoning_format": _one_of("reasoning_format", reasoning_format, _REASONING_FORMATS),
            "enable_thinking": arguments.get("enable_thinking", True),
            "kwargs": arguments,
            "integer_mark": INTEGER_MARK,
        }
        if builtin:
            _check_builtin(template, request)
        native = self._template(template)
        for name in unread_arguments(arguments, self._sources(template), RENDERING):
            warn(f"the chat template does not mention the argument {shown(name)}, and ignores it")
        orders: Orders = {} if read is None else read.orders
        held_to = bool(wanted) and bool(request["json_schema"] or chosen.kind != "none")
        if wanted and held_to:
            # The grammar knows what it can hold a call to, of the tool that is named if one is; beside a schema that is
            # alone, it knows none.
            kept, more = holdable([] if chosen.kind == "none" else wanted)
            orders = {**orders, **more}
            request["tools"] = [each for each in kept if chosen.name in {"", *names_of([each])}] or None

        def rendered(asked: Mapping[str, object]) -> ChatPrompt:
            # The model is told of all tools as they are. If none may be called, llama.cpp does not read their schemas,
            # of which it would refuse some.
            told = _rendered(native, {**asked, "tools": with_marked_integers(wanted), "tool_choice": "none"})
            return replace(_rendered(native, asked), prompt=told.prompt) if held_to else told

        prompt = rendered(request)
        if wanted:
            writes = _writes_tools(native, request, prompt.prompt, names_of(wanted))
            prompt = replace(prompt, writes_tools=writes, misreads_calls=self._misreads_calls(template, request))
        if continue_final_message:
            before = {**request, "messages": checked[:-1]}
            before |= {"continue_final_message": False, "add_generation_prompt": True}
            prompt = continued(prompt, checked, lambda: rendered(before))
        return held(prompt, request, orders, enforced)

    def parse_chat_response(
        self,
        text: str,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template: str | None = None,
        partial: bool = False,
        **kwargs: object,
    ) -> ChatMessage:
        """Parse a reply into its content, its reasoning and its tool calls.

        Parameters
        ----------
        text
            What the model wrote.
        tools, template, kwargs
            What the chat was rendered with, since replies depend on it. As for :meth:`chat_format`.
        partial
            The reply is unfinished: return what is known so far.

        Returns
        -------
        ChatMessage
            A dict with ``role``, ``content``, ``reasoning_content`` and ``tool_calls``. If you have the rendered chat,
            :meth:`ChatPrompt.parse` is faster.

        Raises
        ------
        ChatTemplateError
            If the reply does not have the form of the template's replies.

        Notes
        -----
        Uses ``common_chat_parse``, with the parser that llama.cpp makes for the template.
        """
        given: dict[str, Any] = {"parallel_tool_calls": False, **kwargs}
        rendered = self._chat_format(
            [{"role": "user", "content": "?"}], tools=tools, template=template, enforced=True, **given
        )
        return rendered.parse(text, partial=partial)

    def _template(self, template: str | None) -> CData:
        """A template, ready to be rendered."""
        model = self._open()
        source = self._source(template)
        kept = {**(self._ready or {})}  # a copy: other threads may be here too
        ready = kept.pop(source, None)
        if ready is None:
            encoded = checks.text("template", source)
            if len(encoded) > TEMPLATE_BYTES_MAX:
                raise ChatTemplateError(f"the template has {len(encoded)} bytes; at most {TEMPLATE_BYTES_MAX} are read")
            try:
                ready = own(lib.own_moebind_chat_templates_new, model, encoded, len(encoded), holds=[model])
            except NativeError as error:
                raise ChatTemplateError(f"the chat template is wrong: {clean_message(error.message)}") from None
        kept[source] = ready
        self._ready = dict(list(kept.items())[-_READY_MAX:])
        return ready

    def _source(self, template: str | None) -> str:
        """Jinja source, a name that llama.cpp knows, or "" for what the file says."""
        if template is None:
            names = self.chat_template_names
            if not {"default", "tool_use"}.intersection(names):
                raise ChatTemplateError(f"{self.path} has no default chat template{self._other_templates()}")
            if max(len(self.chat_template(name)) for name in names) > TEMPLATE_BYTES_MAX:
                raise ChatTemplateError(f"a chat template of {self.path} has more than {TEMPLATE_BYTES_MAX} characters")
            return ""
        checks.text("template", template)
        if not template:
            raise ValueError("template is empty; it takes a name, Jinja source, or None for the file's own")
        if any(mark in template for mark in ("{{", "{%", "{#")):
            return template
        named = named_template(template)
        if named is not None:
            return named
        return template if self._is_builtin(template) else self.chat_template(template)

    def _misreads_calls(self, template: str | None, request: Mapping[str, object]) -> bool:
        """Whether llama.cpp does not read the calls that a template writes, which is found out once."""
        source = self._source(template)
        if source not in self._misread:
            native = self._template(template)
            alone = {**request, **_WITHOUT_TOOLS, "tool_choice": "auto", "continue_final_message": False, "kwargs": {}}
            misread = misreads_calls(lambda asked: _rendered(native, {**alone, **asked}))
            self._misread = {**dict([*self._misread.items()][1 - _READY_MAX :]), source: misread}
        return self._misread[source]

    def _sources(self, template: str | None) -> list[str]:
        """The texts of the templates that may be rendered."""
        source = self._source(template)
        return [source] if source else [self.chat_template(name) for name in self.chat_template_names]

    def _is_builtin(self, template: str | None) -> bool:
        """Whether it names a template of llama.cpp's own code, which the file has no other one for."""
        if template is None or named_template(template) is not None or template in self.chat_template_names:
            return False
        return template in chat_builtin_templates()


def _rendered(template: CData, request: Mapping[str, object]) -> ChatPrompt:
    parser = own(lib.own_moebind_chat_parser_new)
    try:
        found = exchange(request, lib.own_moebind_chat_apply, template, parser)
    except ChatTemplateError:
        # A call that was cut off is kept as text where the template can hold text.
        messages = copy.deepcopy(cast("list[dict[str, object]]", request["messages"]))
        broken = list(calls_that_are_no_json(messages))
        if not broken:
            raise
        for _, function in broken:
            function["arguments"] = json.dumps(function["arguments"])
        try:
            found = exchange({**request, "messages": messages}, lib.own_moebind_chat_apply, template, parser)
        except ChatTemplateError as error:
            raise ChatTemplateError(
                f"{broken[0][0]}'s arguments are no JSON (was the reply cut off?), and this template cannot write them "
                f"as text: leave the call out, or mend it. {error}"
            ) from None
    found["prompt"] = with_integers(found["prompt"])
    triggers = tuple(ChatTrigger(each["type"], each["value"]) for each in found.pop("triggers"))
    lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
    asked = str(request["reasoning_format"])
    return ChatPrompt(**{**found, **lists}, triggers=triggers, reasoning_format=asked, parser=parser)


def _writes_tools(template: CData, request: Mapping[str, object], prompt: str, names: Sequence[str]) -> bool:
    """Whether a prompt has tools of these names in it."""
    if not any(name in prompt for name in names):
        return False
    if not any(name in json.dumps(request["messages"], ensure_ascii=False) for name in names):
        return True
    try:
        return _rendered(template, {**request, **_WITHOUT_TOOLS}).prompt != prompt
    except ChatTemplateError:
        return True


def chat_builtin_templates() -> tuple[str, ...]:
    """The names of the templates that are built into llama.cpp (``llama_chat_builtin_templates``).

    Pass one as ``template`` if a file has none. They are rendered with ``llama_chat_apply_template``: messages only,
    without tools or arguments.

    Returns
    -------
    tuple of str
    """
    count = lib.llama_chat_builtin_templates(ffi.NULL, 0)
    names = ffi.new("const char *[]", count)
    lib.llama_chat_builtin_templates(names, count)
    return tuple(decoded(name) for name in names)


def _check_builtin(name: str | None, request: Mapping[str, object]) -> None:
    """Refuse what llama.cpp's own templates would leave out without a word, or cut off."""
    for key in ("tools", "json_schema", "continue_final_message"):
        if request[key]:
            raise ChatTemplateError(
                f"the template {shown(name)} is llama.cpp's own code, which does not know {key}: "
                f"template={CHATML_TOOLS!r} does"
            )
    if "\\u0000" in json.dumps(request["messages"]).replace("\\\\", ""):
        raise ValueError(f"messages contain a NUL character, which the template {shown(name)} cannot hold")


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)}; it takes one of {', '.join(allowed)}")
    if value not in allowed:
        raise ValueError(f"{name} is {shown(value)}; it takes one of {', '.join(allowed)}")
    return value
