"""Replies that are held to a schema or to tools, and what cannot be held to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chats import HELLO, TEMPLATE

from moebind import Context, GrammarError, Model, Sampler, SamplerError, TokenDataArray

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is somewhere.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
        },
    },
}


@pytest.mark.parametrize("sampled", [False, True])
def test_a_reply_is_held_to_a_schema(talking: Context, sampled: bool) -> None:
    for seed in range(4 if sampled else 1):
        chain = [Sampler.penalties(32, 1.3), Sampler.temp(1.5), Sampler.dist(seed)]
        sampler = Sampler.chain(chain) if sampled else None
        reply = talking.chat(HELLO, json_schema=CITY, sampler=sampler, max_tokens=40)
        message = reply.complete()
        assert reply.stop_reason == "eog"
        assert json.loads(message["content"])["city"] in {"Paris", "Rome"}


def test_a_samplers_state_goes_on_from_reply_to_reply(talking: Context) -> None:
    sampler = Sampler.chain([Sampler.temp(5.0), Sampler.dist(3)])
    schema = {"enum": list(range(100, 200))}
    texts = {talking.chat(HELLO, json_schema=schema, sampler=sampler).complete()["content"] for _ in range(6)}
    assert len(texts) > 1
    assert not sampler.closed


class Begins:
    """A sampler that would have a text begin with another."""

    def __init__(self, model: Model, text: str) -> None:
        self.tokens = model.str_to_token(text, add_special=False).tolist()

    def __call__(self, candidates: TokenDataArray) -> None:
        wanted = self.tokens[0] if self.tokens else None
        data = candidates.data
        data["logit"][data["id"] == wanted] += 100
        candidates.select(int(data["logit"].argmax()))

    def accept(self, token: int) -> None:
        self.tokens = self.tokens[1:]


def test_a_reply_must_call_a_tool(talking: Context) -> None:
    sampler = Sampler.from_callable(Begins(talking.model, "<tool_call>"))
    reply = talking.chat(
        HELLO, tools=[WEATHER], tool_choice="required", template=TEMPLATE, sampler=sampler, max_tokens=120
    )
    calls = reply.complete()["tool_calls"]
    assert reply.stop_reason == "eog"
    assert {call["function"]["name"] for call in calls} == {"weather"}
    assert all(set(json.loads(call["function"]["arguments"])) == {"city"} for call in calls)


def test_a_reply_may_call_a_tool(talking: Context) -> None:
    prompt = talking.model.chat_format(HELLO, tools=[WEATHER], template=TEMPLATE)
    assert prompt.grammar_lazy
    reply = talking.chat(HELLO, tools=[WEATHER], template=TEMPLATE, max_tokens=8)
    free = talking.chat(HELLO, tools=[WEATHER], template=TEMPLATE, max_tokens=8, use_grammar=False)
    reply.complete()
    free.complete()
    assert reply.text == free.text  # nothing triggered the grammar


PLACE = {"properties": {"city": {"type": "string", "pattern": "Rome"}}, "type": "object", "required": ["city"]}


def with_parameters(parameters: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": "place", "parameters": parameters}}


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        (PLACE, r"'place' .* schema at #/properties/city: .*pattern"),
        (
            {"type": "object", "properties": {"n": {"type": "array", "uniqueItems": True}}},
            "#/properties/n: 'uniqueItems'",
        ),
        ({"type": "object", "properties": {"n": {"type": "number", "minimum": 1}}}, "#/properties/n: 'minimum'"),
    ],
)
def test_what_a_tools_schema_asks_in_vain_is_a_warning(talking: Context, parameters: object, told: str) -> None:
    with pytest.warns(UserWarning, match=told) as caught:
        talking.chat(HELLO, tools=[WEATHER, with_parameters(parameters)], template=TEMPLATE, max_tokens=1).complete()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    # Without the grammar nothing is promised.
    talking.chat(HELLO, tools=[with_parameters(parameters)], template=TEMPLATE, use_grammar=False, max_tokens=1)


def test_tools_that_the_template_leaves_out_are_a_warning(talking: Context) -> None:
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.warns(UserWarning, match="does not write the tools into the prompt") as caught:
        talking.chat(HELLO, tools=[WEATHER], template=template, max_tokens=1).complete()
    assert len(caught) == 1
    named = [{"role": "user", "content": f"What is the {WEATHER['function']['name']}?"}]
    with pytest.warns(UserWarning, match="does not write the tools into the prompt"):
        talking.chat(named, tools=[WEATHER], template=template, max_tokens=1).complete()
    assert talking.model.chat_format(named, tools=[WEATHER], template=TEMPLATE).writes_tools
    assert talking.model.chat_format(HELLO, tools=[WEATHER], template=TEMPLATE).writes_tools
    assert not talking.model.chat_format(named, template=TEMPLATE).writes_tools
    talking.chat(HELLO, tools=[WEATHER], tool_choice="none", template=template, max_tokens=1).complete()


def test_schemas_are_converted_in_silence(talking: Context, capfd: pytest.CaptureFixture[str]) -> None:
    talking.model.chat_format(HELLO, tools=[with_parameters(PLACE)], template=TEMPLATE)
    assert capfd.readouterr() == ("", "")


def test_a_reply_need_not_be_held(talking: Context) -> None:
    reply = talking.chat(HELLO, json_schema=CITY, max_tokens=4, use_grammar=False)
    for _ in reply:
        pass
    assert not reply.text.startswith("{")


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "strange"}, "strange"),
        ({"not": {}}, "not"),
        ({"type": "number", "minimum": 3}, "minimum"),
        ("{", "JSON"),
    ],
)
def test_schemas_that_cannot_be_held_to(talking: Context, schema: object, what: str) -> None:
    with pytest.raises(GrammarError, match=what):
        talking.chat(HELLO, json_schema=schema)


@pytest.mark.parametrize("sampler", ["greedy", 3, Sampler.greedy])
def test_samplers_that_are_none(talking: Context, sampler: Any) -> None:
    with pytest.raises(TypeError, match="takes a Sampler"):
        talking.chat(HELLO, json_schema=CITY, sampler=sampler)


def test_a_sampler_that_does_not_choose(talking: Context) -> None:
    with pytest.raises(SamplerError, match="does not choose"):
        talking.chat(HELLO, json_schema=CITY, sampler=Sampler.temp(1.0))
