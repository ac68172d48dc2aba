"""Replies that are held to the grammar of a chat: its tools, or its JSON schema."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from moebind._core import checks
from moebind._core.native import ffi, lib
from moebind.chat.messages import checked_tools
from moebind.errors import GrammarError, NativeError
from moebind.sampling.json_schema import strict_schema
from moebind.sampling.sampler import Sampler

if TYPE_CHECKING:
    from moebind.chat.prompt import ChatPrompt, ChatTrigger
    from moebind.model.model import Model
    from moebind.sampling.candidates import TokenDataArray

__all__ = ["doubts", "grammar_sampler", "held_to", "preserved_tokens"]


def doubts(prompt: ChatPrompt, tools: Sequence[Mapping[str, object]] | None, held: bool) -> Iterator[str]:
    """What may come as a surprise: tools that the template leaves out, schemas that no grammar can enforce.

    ``held`` is whether the reply is held to the grammar.
    """
    functions = [cast("Mapping[str, object]", tool["function"]) for tool in checked_tools(tools) or ()]
    if functions and not any(str(function["name"]) in prompt.prompt for function in functions):
        yield "the chat template does not write the tools into the prompt, so the model does not know them"
        return
    for function in functions if held and prompt.grammar else ():
        try:
            strict_schema(cast("Mapping[str, object]", function["parameters"]))
        except GrammarError as error:
            yield (
                f"arguments of the tool {function['name']!r} may not fit its schema, which a grammar cannot enforce: "
                f"{error}. Check them, or change the schema"
            )


def preserved_tokens(model: Model, prompt: ChatPrompt) -> frozenset[int]:
    """Control tokens whose text is part of a reply."""
    tokens = [model.str_to_token(text, add_special=False) for text in prompt.preserved_tokens]
    return frozenset(int(each[0]) for each in tokens if each.size == 1)


def grammar_sampler(model: Model, prompt: ChatPrompt) -> Sampler | None:
    """The sampler that lets through what ``prompt.grammar`` allows; None if there is no grammar."""
    if not prompt.grammar:
        return None
    if prompt.grammar_lazy:
        tokens = [int(trigger.value) for trigger in prompt.triggers if trigger.type == "token"]
        patterns = [_pattern(trigger) for trigger in prompt.triggers if trigger.type != "token"]
        sampler = Sampler.grammar_lazy_patterns(model, prompt.grammar, "root", patterns, tokens)
    else:
        sampler = Sampler.grammar(model, prompt.grammar)
        # The grammar describes the whole reply, of which the template has written the beginning already.
        try:
            lib.moebind_grammar_written(sampler._open(), checks.text("the prompt", prompt.generation_prompt))
        except NativeError as error:
            raise GrammarError(
                f"the template begins the reply with {prompt.generation_prompt!r}, and llama.cpp's grammar for it says "
                f"something else ({error.message}): pass use_grammar=False"
            ) from None
    shown = np.array(sorted(preserved_tokens(model, prompt)), np.int32)
    lib.moebind_grammar_show(sampler._open(), ffi.from_buffer("llama_token[]", shown), shown.size)
    return sampler


def _pattern(trigger: ChatTrigger) -> str:
    if trigger.type == "word":
        return re.sub(r"[.^$|()*+?\[\]{}\\]", r"\\\g<0>", trigger.value)
    if trigger.type == "pattern_full":
        return f"^{trigger.value.removeprefix('^').removesuffix('$')}$"
    return trigger.value


class _Lent:
    """A sampler of the caller's in a chain that does not own it, so that it remembers what was chosen."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def __call__(self, candidates: TokenDataArray) -> None:
        self._sampler.apply(candidates)

    def accept(self, token: int) -> None:
        self._sampler.accept(token)


def held_to(model: Model, prompt: ChatPrompt, sampler: Sampler | None) -> Sampler | None:
    """``sampler``, choosing only from what the grammar allows; None is the likeliest token."""
    grammar = grammar_sampler(model, prompt)
    if grammar is None:
        return sampler
    if sampler is None:
        return Sampler.chain([grammar, Sampler.greedy()])
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler is {sampler!r}; it takes a Sampler")
    sampler._must_choose()
    return Sampler.chain([grammar, Sampler.from_callable(_Lent(sampler))])
