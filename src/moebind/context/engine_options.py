"""The options of an engine's requests: those of ``Context.generate`` and ``Context.chat``, but for a few."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, TypedDict

from moebind.context.stops import Stop
from moebind.context.unknown_arguments import refuse, unknown_of

if TYPE_CHECKING:
    from moebind.context.speculative import Speculative
    from moebind.enums import SpeculativeType
    from moebind.sampling.sampler import Sampler

__all__ = ["NOT_TAKEN", "ChatOptions", "GenerateOptions", "check_names"]

#: Arguments of a context's calls that an engine's do not have, and why.
NOT_TAKEN = {
    "seq_id": "an engine chooses sequences by itself",
    "reuse_prefix": "an engine always goes on from what its cache has of a prompt",
    "mtmd": "pictures and sound are for one text at a time: Context.generate(), or a ContextPool",
}


class GenerateOptions(TypedDict, total=False):
    """The options of ``Engine.generate`` and ``Engine.agenerate``, as for ``Context.generate``."""

    sampler: Sampler | None
    max_tokens: SupportsIndex | None
    stop: Stop | Sequence[Stop] | None
    temperature: float | None
    top_k: SupportsIndex | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: SupportsIndex | None
    json_schema: Mapping[str, object] | str | None
    strict: bool
    logprobs: bool | SupportsIndex | None
    speculative: Speculative | SpeculativeType | str | None


class ChatOptions(GenerateOptions, total=False):
    """The options of ``Engine.chat`` and ``Engine.achat``, as for ``Context.chat``."""

    tools: Sequence[Mapping[str, object]] | None
    tool_choice: str | Mapping[str, object]
    parallel_tool_calls: bool
    template: str | None
    template_kwargs: Mapping[str, object] | None
    reasoning_format: str
    continue_final_message: bool
    use_grammar: bool


def check_names(call: str, function: Callable[..., Any], given: Mapping[str, object]) -> None:
    """Raise for options that a call of an engine's does not have.

    Raises
    ------
    TypeError
    """
    for name, why in NOT_TAKEN.items():
        if name in given:
            raise TypeError(f"Engine.{call} has no argument {name!r}: {why}")
    refuse(call, function, unknown_of(function, given))
