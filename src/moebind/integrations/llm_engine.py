"""Computes for the command-line tool llm, whose plugin is ``moebind_launcher.llm_plugin``."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, cast

import llm
from llm.parts import StreamEvent

from moebind.backend.devices import local_gpus
from moebind.integrations.loading import LOADING, parameters
from moebind.model.model import Model
from moebind.params.params import ContextParams
from moebind.placement.listing import list_models, listing_text

if TYPE_CHECKING:
    from moebind.chat.prompt import ToolCall
    from moebind.context.context import Context
    from moebind.params.params import ModelParams

__all__ = ["Engine", "listing", "messages_of"]

#: Options that ``Context.chat`` takes as they are.
_GENERATING = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "template",
)


class _Loaded:
    """A loaded model, with the contexts of the conversations that go on. Closed when nobody computes in it any more."""

    def __init__(self, path: str, settings: dict[str, Any], model: ModelParams, context: ContextParams) -> None:
        self.settings, self.params, self.context_params = settings, model, context
        self.model = Model.load_from_file(path, model)
        self._idle: dict[tuple[str | None, ContextParams], Context] = {}
        self._n_busy, self._retired = 0, False
        # Reentrant: a conversation may be collected wherever Python collects.
        self._lock = threading.RLock()

    def hold(self) -> None:
        """Keep it open until :meth:`release`."""
        with self._lock:
            self._n_busy += 1

    def release(self) -> None:
        """Undo :meth:`hold`."""
        with self._lock:
            self._n_busy -= 1
            if self._retired and not self._n_busy:
                self.model.close()

    def retire(self) -> None:
        """Close it, now or when the last reply is complete."""
        with self._lock:
            self._retired = True
            if not self._n_busy:
                self.model.close()

    @contextmanager
    def context(self, params: ContextParams, conversation: llm.Conversation | None) -> Iterator[Context]:
        """The conversation's context for this long, or a new one: it has none yet, or is being answered already."""
        key = None if conversation is None else conversation.id, params
        with self._lock:
            context = self._idle.pop(key, None)
        if context is None:
            context = self.model.new_context(params)
            if conversation is not None:
                weakref.finalize(conversation, self._forget, key)
        try:
            yield context
        finally:
            self._forget(key)  # that of another reply, which was complete earlier
            with self._lock:
                self._idle[key] = context

    def _forget(self, key: tuple[str | None, ContextParams]) -> None:
        with self._lock:
            context = self._idle.pop(key, None)
        if context is not None:
            context.close()


class Engine:
    """One model, loaded when it is asked for something, and again when it is to be placed differently.

    llm makes its objects anew whenever it looks for a model. All of them for one file share an engine.
    """

    _known: ClassVar[weakref.WeakValueDictionary[str, Engine]] = weakref.WeakValueDictionary()
    _making = threading.Lock()

    def __init__(self, path: str) -> None:
        self._path = path
        self._loaded: list[_Loaded] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _retire_all, self._loaded)

    @classmethod
    def of(cls, path: str) -> Engine:
        """The engine for a file."""
        with cls._making:
            known = cls._known.get(path)
            if known is None:
                known = cls._known[path] = cls(path)
            return known

    def reply(
        self, prompt: llm.Prompt, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[StreamEvent]:
        """Answer a prompt, and note what it took in the response."""
        options = prompt.options.model_dump(exclude_none=True)
        arguments: dict[str, Any] = {name: options[name] for name in _GENERATING if name in options}
        if "thinking" in options:
            arguments["template_kwargs"] = {"enable_thinking": options["thinking"]}
        messages = messages_of(prompt.messages)
        tools = _tools(prompt.tools)
        if options.get("tool_choice") == "required" and tools and messages and messages[-1]["role"] == "user":
            arguments |= {"tool_choice": "required", "parallel_tool_calls": False}
        settings = {name: options[name] for name in LOADING if name in options}
        with self._placed(settings) as (loaded, params), loaded.context(params, conversation) as context:
            reply = context.chat(
                messages,
                stop=options.get("stop", ()),
                tools=tools,
                json_schema=cast("dict[str, object] | None", prompt.schema),
                **arguments,
            )
            with reply:
                for delta in reply.deltas():
                    if delta.get("reasoning_content"):
                        yield StreamEvent("reasoning", delta["reasoning_content"])
                    if delta.get("content"):
                        yield StreamEvent("text", delta["content"])
            for call in reply.message["tool_calls"]:
                response.add_tool_call(_tool_call(call, reply.stop_reason))
            usage = reply.usage
            cached = {"cached_tokens": usage.cached_tokens} if usage.cached_tokens else None
            response.set_usage(input=usage.prompt_tokens, output=usage.generated_tokens, details=cached)
            response.response_json = {"stop_reason": reply.stop_reason}

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The embeddings of texts; the ends of those that are too long are left out."""
        with self._placed(self._loaded[0].settings if self._loaded else {}) as (loaded, params):
            computing = ContextParams(n_threads=params.n_threads, n_threads_batch=params.n_threads_batch)
            vectors = loaded.model.embed(texts, truncate=True, context_params=computing)
        return cast("list[list[float]]", vectors.tolist())

    @contextmanager
    def _placed(self, settings: dict[str, Any]) -> Iterator[tuple[_Loaded, ContextParams]]:
        """The model as settings have it, which stays open for this long, and how to make its contexts."""
        with self._lock:
            before = self._loaded[0] if self._loaded else None
            if before is None or settings != before.settings:
                if before is not None and local_gpus():
                    self._loaded.pop().retire()  # so that its memory counts as free
                model, context = parameters(self._path, settings)
                if self._loaded and model != self._loaded[0].params:
                    self._loaded.pop().retire()
                if self._loaded:
                    self._loaded[0].settings, self._loaded[0].context_params = settings, context
                else:
                    self._loaded.append(_Loaded(self._path, settings, model, context))
            loaded = self._loaded[0]
            params = loaded.context_params
            loaded.hold()
        try:
            yield loaded, params
        finally:
            loaded.release()


def _retire_all(loaded: list[_Loaded]) -> None:
    for each in loaded:
        each.retire()


def listing(names: Mapping[str, str], folders: Sequence[str], fits: bool) -> str:
    """A table of the models in folders and in the Hub's cache; ``names`` is what llm calls those with these paths."""
    rows = list_models(folders, hub=find_spec("huggingface_hub") is not None, fits=fits)
    return listing_text([replace(row, name=names.get(row.path, row.name)) for row in rows])


def messages_of(messages: Sequence[llm.Message]) -> list[dict[str, object]]:
    """Llm's messages as moebind takes them.

    Raises
    ------
    ValueError
        If there is something else than text in them.
    """
    result: list[dict[str, object]] = []
    for message in messages:
        text: list[str] = []
        reasoning: list[str] = []
        calls: list[dict[str, object]] = []
        for part in message.parts:
            each: Any = part
            kind = each.to_dict()["type"]
            if kind == "text":
                text.append(each.text)
            elif kind == "reasoning":
                reasoning.append(each.text)
            elif kind == "tool_call":
                function = {"name": each.name, "arguments": json.dumps(each.arguments)}
                calls.append({"id": each.tool_call_id or "", "type": "function", "function": function})
            elif kind == "tool_result":
                answer = {"role": "tool", "name": each.name, "content": each.output}
                result.append(answer | ({"tool_call_id": each.tool_call_id} if each.tool_call_id else {}))
            else:
                raise ValueError(f"a message has a part of the kind {kind!r}; moebind takes text")
        if message.role == "tool":
            continue
        made: dict[str, object] = {"role": message.role, "content": "".join(text)}
        if any(reasoning):
            made["reasoning_content"] = "".join(reasoning)
        if calls:
            made["tool_calls"] = calls
        result.append(made)
    return result


def _tool_call(call: ToolCall, stop_reason: str | None) -> llm.ToolCall:
    """A call as llm takes it."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        raise ValueError(
            f"the reply ended ({stop_reason}) in the middle of a call of {function['name']!r}: raise max_tokens or "
            "n_ctx"
        ) from None
    return llm.ToolCall(function["name"], arguments, call["id"])


def _tools(tools: Sequence[Any]) -> list[dict[str, object]] | None:
    """Llm's tools as moebind takes them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.input_schema or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ] or None
