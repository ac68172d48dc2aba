"""Replies that are held to the grammar of a chat: its tools, or its JSON schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from moebind._core import checks
from moebind._core.native import ffi, lib
from moebind._core.shown import shown
from moebind.chat.demanded_calls import allows_text_before
from moebind.chat.enforcement import allows_call, unheld_arguments
from moebind.chat.messages import checked_tools
from moebind.chat.named_templates import CHATML_TOOLS
from moebind.errors import GrammarError, NativeError
from moebind.sampling.sampler import Sampler

if TYPE_CHECKING:
    from moebind._core.model_base import ModelBase
    from moebind.chat.prompt import ChatPrompt, ChatTrigger

__all__ = ["grammar_sampler", "schema_warnings"]


def schema_warnings(prompt: ChatPrompt, tools: Sequence[Mapping[str, object]] | None, enforced: bool) -> Iterator[str]:
    """Tools that the template or llama.cpp's parser leaves out, and what no grammar holds a call to, a sentence each.

    ``enforced`` is whether the reply is constrained by the grammar.
    """
    functions = [cast("Mapping[str, object]", tool["function"]) for tool in checked_tools(tools) or ()]
    if functions and not prompt.writes_tools:
        yield (
            "the chat template does not write the tools into the prompt, so the model does not know them; "
            f"template={CHATML_TOOLS!r} does"
        )
        return
    if functions and not prompt.reads_calls:
        yield (
            "llama.cpp finds no form of a call in this chat template: calls are not read, and stay text in the content "
            "of the reply"
        )
        return
    if functions and prompt.misreads_calls:
        yield (
            "llama.cpp reads calls of this chat template in another form than the template writes them: the grammar "
            "holds the model to llama.cpp's form, and without the grammar its calls may not be read"
        )
    if functions and enforced and not prompt.grammar_lazy and allows_text_before(prompt):
        yield (
            "a reply of this template may write text before the call that it has to make: max_tokens may end it before "
            "it comes to one"
        )
    for function in functions if enforced else ():
        name, parameters = str(function["name"]), cast("Mapping[str, object]", function["parameters"])
        if not allows_call(prompt.grammar, name):
            if parameters:
                yield (
                    f"arguments of the tool {shown(name)} may not fit its schema, since nothing marks where this "
                    "template's calls begin: check them, or demand a call with tool_choice='required'"
                )
            continue
        for clause in unheld_arguments(prompt.grammar, name, parameters):
            yield (
                f"arguments of the tool {shown(name)} may not fit its schema, which a grammar cannot enforce: "
                f"{clause}. Check them, or change the schema"
            )


def grammar_sampler(model: ModelBase, prompt: ChatPrompt, preserved: frozenset[int]) -> Sampler | None:
    """The sampler that lets through what ``prompt.grammar`` allows; None if there is no grammar.

    ``preserved`` are the control tokens of ``prompt.preserved_tokens``, whose text is part of a reply.
    """
    if not prompt.grammar:
        return None
    if prompt.grammar_lazy:
        tokens = [int(trigger.value) for trigger in prompt.triggers if trigger.type == "token"]
        # Words are looked for as such: each token of a reply would take longer than the last with a pattern.
        words = [trigger.value.encode() for trigger in prompt.triggers if trigger.type == "word"]
        patterns = [_pattern(trigger) for trigger in prompt.triggers if trigger.type.startswith("pattern")]
        sampler = Sampler._lazy(model, prompt.grammar, "root", words, patterns, tokens)
    else:
        sampler = Sampler.grammar(model, prompt.grammar)
        # The grammar describes the whole reply, of which the template has written the beginning already.
        try:
            lib.moebind_grammar_written(sampler._open(), checks.text("the prompt", prompt.generation_prompt))
        except NativeError as error:
            raise GrammarError(
                f"the template begins the reply with {shown(prompt.generation_prompt)}, and llama.cpp's grammar for it "
                f"says something else ({error.message}): pass use_grammar=False"
            ) from None
    visible = np.array(sorted(preserved), np.int32)
    lib.moebind_grammar_show(sampler._open(), ffi.from_buffer("llama_token[]", visible), visible.size)
    return sampler


def _pattern(trigger: ChatTrigger) -> bytes:
    if trigger.type == "pattern_full":
        return f"^{trigger.value.removeprefix('^').removesuffix('$')}$".encode()
    return trigger.value.encode()
