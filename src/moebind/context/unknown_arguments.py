"""Arguments that a call does not have: what to write instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from moebind._core.shown import shown
from moebind.sampling.settings import SAMPLERS

__all__ = ["refuse", "unknown_of"]

#: Names of other libraries and programs for arguments of these calls.
_ELSEWHERE = {
    "temp": "temperature",
    "repetition_penalty": "repeat_penalty",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "top_logprobs": "logprobs",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "eos_token_id": "stop",
    "num_predict": "max_tokens",
}
#: What other libraries have an argument for, and what there is instead.
_INSTEAD = {
    "response_format": 'write json_schema=response_format["json_schema"]["schema"], the schema alone; without one, '
    'json_schema={"type": "object"}',
    "logits_processor": "pass sampler=Sampler.chain([Sampler.from_callable(function), Sampler.dist(seed)]), where the "
    "function edits the candidates",
    "stopping_criteria": "leave the loop over the pieces",
    "suffix": "put model.token_fim_pre, token_fim_suf and token_fim_mid around the texts, and choose with "
    "sampler=Sampler.chain([Sampler.top_k(40), Sampler.infill(model), Sampler.dist(seed)])",
    **dict.fromkeys(
        ("mirostat", "mirostat_mode", "mirostat_tau", "mirostat_eta"),
        "pass sampler=Sampler.chain([Sampler.mirostat_v2(seed, tau, eta)])",
    ),
    "do_sample": "temperature=0.8 samples; without it, the likeliest token is always chosen",
    **dict.fromkeys(
        ("num_beams", "beam_size"),
        "there is no search with beams; generate_many([prompt] * n, temperature=0.8) gives several texts",
    ),
    "chat_format": "chat(messages, template='chatml') takes a template's name, or Jinja source; None is the file's own",
    **dict.fromkeys(
        ("system", "system_prompt", "system_message"),
        "it is the first message, chat([{'role': 'system', 'content': text}, ...])",
    ),
    **dict.fromkeys(
        ("functions", "function_call"),
        "chat(messages, tools=[{'type': 'function', 'function': each}, ...], tool_choice='auto') has them",
    ),
    "tfs_z": "llama.cpp has no such sampler any more",
    "penalize_nl": "llama.cpp has no such switch any more",
    "stream": "what it gives is an iterator, and complete() is the whole at once",
    "echo": "the prompt is no part of the text, put it before",
    "n": "generate_many([prompt] * n, temperature=...) gives several texts",
    "best_of": "generate_many([prompt] * n, temperature=...) gives several texts",
    "num_return_sequences": "generate_many([prompt] * n, temperature=...) gives several texts",
}


def refuse(call: str, function: Callable[..., Any], unknown: Mapping[str, object], more: str = "") -> None:
    """Raise TypeError if there are any.

    Parameters
    ----------
    call
        What the function is called.
    function
        Whose arguments there are.
    unknown
        What was given besides.
    more
        What else could be done with an argument that resembles none; ``{}`` stands for its name.

    Raises
    ------
    TypeError
    """
    if not unknown:
        return
    name = min(unknown)
    if name in _ELSEWHERE:
        raise TypeError(f"{call} has no argument {shown(name)}; it is {shown(_ELSEWHERE[name])} here")
    if name in _INSTEAD:
        raise TypeError(f"{call} has no argument {shown(name)}: {_INSTEAD[name]}")
    if name in SAMPLERS:
        raise TypeError(
            f"{call} has no argument {shown(name)}: pass a chain of samplers, such as sampler=Sampler.chain([..., "
            f"Sampler.{SAMPLERS[name]}, ...]), of which the last one chooses (Sampler.dist(seed))"
        )
    import difflib  # rarely needed

    own = _own(function)
    alike = difflib.get_close_matches(name, own, 1, 0.75)
    if alike:
        raise TypeError(f"{call} has no argument {shown(name)}; did you mean {alike[0]!r}?")
    raise TypeError(f"{call} has no argument {shown(name)}: it takes {', '.join(own)}{more.format(name)}")


def unknown_of(function: Callable[..., Any], given: Mapping[str, object]) -> dict[str, object]:
    """What of the arguments the function does not have."""
    own = _own(function)
    return {name: value for name, value in given.items() if name not in own}


def _own(function: Callable[..., Any]) -> list[str]:
    return [each for each in inspect.signature(function).parameters if each not in {"self", "unknown"}]
