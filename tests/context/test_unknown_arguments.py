"""Names of arguments that there are not: each answer says what to write."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conftest import SMALL
from moebind import Context, ContextPool, Model
from moebind.context.unknown_arguments import refuse, unknown_of

CALLS: dict[str, Callable[..., object]] = {
    "generate": lambda context, **given: context.generate("a", **given),
    "generate_many": lambda context, **given: context.generate_many(["a"], **given),
    "chat": lambda context, **given: context.chat([{"role": "user", "content": "a"}], **given),
    "agenerate": lambda context, **given: context.agenerate("a", **given),
    "achat": lambda context, **given: context.achat([{"role": "user", "content": "a"}], **given),
}


@pytest.fixture(scope="module")
def talking(demo: Model) -> Iterator[Context]:
    with demo.new_context(SMALL) as context:
        yield context


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_token": 3}, "no argument 'max_token'; did you mean 'max_tokens'"),
        ({"temp": 0.5}, "it is 'temperature' here"),
        ({"n_predict": 4}, "it is 'max_tokens' here"),
        ({"num_predict": 4}, "it is 'max_tokens' here"),
        ({"eos_token_id": 2}, "it is 'stop' here"),
        ({"do_sample": True}, r"temperature=0\.8 samples; without it, the likeliest"),
        ({"num_beams": 4}, "no search with beams; generate_many"),
        ({"chat_format": "chatml"}, r"chat\(messages, template='chatml'\)"),
        ({"system": "Be brief."}, r"the first message, chat\(\[\{'role': 'system', 'content': text\}"),
        ({"functions": []}, r"chat\(messages, tools=\["),
        ({"stream": True}, "iterator"),
        ({"n": 2}, "generate_many"),
        ({"echo": True}, "put it before"),
        ({"grammar": "x"}, "Sampler.grammar"),
        ({"response_format": {}}, re.escape('json_schema=response_format["json_schema"]["schema"]')),
        ({"mirostat_mode": 2}, "Sampler.mirostat_v2"),
        ({"logits_processor": []}, "Sampler.from_callable"),
        ({"stopping_criteria": []}, "leave the loop"),
        ({"suffix": "}"}, "Sampler.infill"),
        ({"zzz": 1}, "it takes"),
    ],
)
def test_what_to_write_instead(talking: Context, call: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said) as raised:
        CALLS[call](talking, **given)
    assert str(raised.value).startswith(f"{call} has no argument")


def test_pools_say_it_at_once(demo: Model) -> None:
    async def ask() -> None:
        with ContextPool([demo.new_context(SMALL)]) as pool:
            with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
                pool.agenerate("a", max_token=3)  # type: ignore[call-arg]
            with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
                pool.achat([], max_token=3)  # type: ignore[call-arg]

    asyncio.run(ask())


def test_what_is_known_passes() -> None:
    def call(self: object, prompt: str, *, wide: int = 0, **unknown: object) -> None:
        pass

    assert unknown_of(call, {"wide": 1, "narrow": 2, "self": 3}) == {"narrow": 2, "self": 3}
    refuse("call", call, {})
    with pytest.raises(TypeError, match="call has no argument 'deep': it takes prompt, wide, or else 'deep'"):
        refuse("call", call, {"deep": 1}, ", or else {!r}")
