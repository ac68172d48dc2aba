"""What the client of OpenAI gets from a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import tiny
from chats import TEMPLATE
from edited import Edited
from serving import CONTEXT, SMALL_SERVER

from moebind import PoolingType
from moebind.server import Server

MakeTiny = Callable[..., Path]
ASKED: Any = [{"role": "user", "content": "hello"}]
SCHEMA: Any = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Paris"]}},
            "required": ["city"],
        },
    },
}


#: In the place of the last token: how calls begin.
CALL = "<tool_call>\n"
#: Has random weights end their reply as soon as the grammar lets them, and call until then.
BIAS: Any = {"2": 100, str(len(tiny.TOKENS) - 1): 50}
#: Reasoning may come first, and of random weights fill the context: it would begin with this character.
NO_REASONING: Any = {str(tiny.TOKENS.index("<0x3C>")): -100}


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a template that knows tools: with one that does not, llama-server ignores them."""
    file = Edited(tiny_path(n_expert=4, n_ctx_train=1024), tmp_path_factory.mktemp("tools") / "tools.gguf")
    file.set("tokenizer.ggml.tokens", [*tiny.TOKENS[:-1], CALL])
    return file.set("tokenizer.chat_template", TEMPLATE).write()


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Server]:
    with Server(path, **SMALL_SERVER, n_ctx=1024, api_key="sesame") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI, server: Server) -> None:
    [model] = client.models.list().data
    assert model.id == server.models[0].name
    assert model.object == "model"


def test_chat_streams_what_it_says_at_once(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="any", messages=ASKED, max_tokens=4, temperature=0)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4
    assert reply.choices[0].finish_reason == "length"
    pieces = [
        *client.chat.completions.create(
            model="any",
            messages=ASKED,
            max_tokens=4,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    ]
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    # Only of a whole reply is the beginning of a character shown that the end cut off.
    assert text == str(reply.choices[0].message.content).rstrip("\ufffd")
    assert [piece.usage.completion_tokens for piece in pieces if piece.usage] == [4]
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "length"


def test_a_stream_that_is_left_is_the_end_of_its_request(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="any", messages=ASKED, max_tokens=900, stream=True) as pieces:
        next(iter(pieces))
    reply = client.chat.completions.create(model="any", messages=ASKED, max_tokens=1)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 1


def test_several_at_once(server: Server) -> None:
    async def main() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sesame", max_retries=0) as client:
            asked = (
                client.chat.completions.create(model="any", messages=ASKED, max_tokens=4, temperature=0)
                for _ in range(6)  # more than there are slots
            )
            return [reply.choices[0].message.content for reply in await asyncio.gather(*asked)]

    assert len(asyncio.run(main())) == 6


def call(client: openai.OpenAI, **arguments: Any) -> Any:
    """Ask for a call; llama-server's grammar allows text before it, so the model has to want one."""
    return client.chat.completions.create(
        model="any",
        messages=ASKED,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        logit_bias=BIAS,
        **arguments,
    )


def test_a_tool_is_called(client: openai.OpenAI) -> None:
    [choice] = call(client).choices
    assert choice.finish_reason == "tool_calls"
    [called] = choice.message.tool_calls
    assert called.function.name == "weather"
    assert json.loads(called.function.arguments)["city"] in {"Oslo", "Paris"}


def test_a_call_is_streamed(client: openai.OpenAI) -> None:
    pieces = [piece.choices[0] for piece in call(client, stream=True) if piece.choices]
    calls = [each for piece in pieces for each in piece.delta.tool_calls or []]
    assert {each.index for each in calls} == {0}
    assert "".join(each.function.name or "" for each in calls) == "weather"
    assert json.loads("".join(each.function.arguments or "" for each in calls))["city"] in {"Oslo", "Paris"}
    assert len(calls) > 1
    assert pieces[-1].finish_reason == "tool_calls"


def test_what_a_tool_said_is_taken(client: openai.OpenAI) -> None:
    made = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    talk = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    whole: Any = {"ignore_eos": True}  # a text that is drawn may end at once
    reply = client.chat.completions.create(model="any", messages=talk, tools=[TOOL], max_tokens=2, extra_body=whole)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_json_of_a_schema(client: openai.OpenAI, stream: bool) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    reply: Any = client.chat.completions.create(
        model="any", messages=ASKED, response_format=form, stream=stream, logit_bias=NO_REASONING
    )
    if stream:
        text = "".join(piece.choices[0].delta.content or "" for piece in reply if piece.choices)
    else:
        text = reply.choices[0].message.content
    assert isinstance(json.loads(text)["yes"], bool)


def test_embeddings(path: Path) -> None:
    context = CONTEXT.with_embeddings(True).with_pooling_type(PoolingType.MEAN)
    with Server(path, **{**SMALL_SERVER, "context_params": context}) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            texts = ["it is", "it was"]
            [one, two] = client.embeddings.create(model="any", input=texts, encoding_format="float").data
            assert len(one.embedding) == len(two.embedding) == 64
            [packed, _] = client.embeddings.create(model="any", input=texts).data  # base64, its default
            assert packed.embedding == pytest.approx(one.embedding, abs=0)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": "user", "content": "a " * 4096}]}, "exceeds the available context size"),
    ({"messages": [{"content": "hello"}]}, "role"),
    ({"temperature": "warm"}, "temperature"),
    ({"response_format": {"type": "yaml"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, "schema"),
]


@pytest.mark.parametrize(("asked", "message"), BAD, ids=[str(next(iter(asked))) for asked, _ in BAD])
def test_what_is_wrong_is_said(client: openai.OpenAI, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as raised:
        client.chat.completions.create(**{"model": "any", "messages": ASKED, "max_tokens": 1, **asked})
    assert raised.value.status_code == (500 if message == "role" else 400)  # which is llama-server's choice
    assert client.models.list().data  # it is still there


def test_other_errors(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError):
        client.post("/none", cast_to=object)
    with pytest.raises(openai.APIStatusError, match="support embeddings"):
        client.embeddings.create(model="any", input="it is")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="guessed", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError, match="Invalid API Key"):
            stranger.models.list()


def test_echo_is_ignored(client: openai.OpenAI) -> None:
    # Of llama-server: docs/serving.md tells whoever scores texts by it. If it is no longer so, tell that.
    reply = client.completions.create(model="any", prompt="it is", echo=True, logprobs=1, max_tokens=1, temperature=0)
    assert not reply.choices[0].text.startswith("it is")
