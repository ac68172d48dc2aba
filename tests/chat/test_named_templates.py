"""The template with tools that is there for models whose file has none."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from chats import HELLO, REPLY, WEATHER

from conftest import SMALL
from moebind import ChatTemplateError, Context, GrammarError, Model
from moebind.chat.named_templates import CHATML_TOOLS, chatml_tools, named_template

SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}


@pytest.fixture(scope="module")
def context(demo: Model) -> Iterator[Context]:
    with demo.new_context(SMALL.with_n_ctx(1024)) as made:
        yield made


def test_names() -> None:
    assert named_template("chatml") == "chatml"
    assert named_template("chatml-tools") == chatml_tools()
    assert named_template("llama3") is None


def test_it_writes_and_reads_tools(demo: Model) -> None:
    prompt = demo.chat_format(HELLO, tools=[WEATHER], template=CHATML_TOOLS)
    assert prompt.writes_tools
    assert prompt.reads_calls
    assert not prompt.misreads_calls
    message = prompt.parse(REPLY)
    assert message["reasoning_content"].strip() == "They ask for the weather."
    [call] = message["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}


def test_a_call_that_is_demanded_comes(context: Context) -> None:
    asked = [{"role": "user", "content": "What is the weather in Rome?"}]
    options = {"tool_choice": "required", "max_tokens": 128}
    with pytest.raises(GrammarError, match=f"such as template='{CHATML_TOOLS}'"):
        context.chat(asked, tools=[WEATHER], template="chatml", **options)  # type: ignore[arg-type]
    message = context.chat(asked, tools=[WEATHER], template=CHATML_TOOLS, **options).complete()  # type: ignore[arg-type]
    call = message["tool_calls"][0]
    assert call["function"]["name"] == "weather"
    assert set(json.loads(call["function"]["arguments"])) == {"city"}


def test_a_schema_is_held(context: Context) -> None:
    reply = context.chat(HELLO, json_schema=SCHEMA, template=CHATML_TOOLS, max_tokens=64)
    assert json.loads(reply.complete()["content"]) == {"city": "Rome"}


@pytest.mark.parametrize(("name", "given"), [("tools", [WEATHER]), ("json_schema", SCHEMA)])
def test_what_knows_messages_only_says_which_knows_more(demo: Model, name: str, given: object) -> None:
    with pytest.raises(ChatTemplateError, match=f"does not know {name}: template='{CHATML_TOOLS}' does"):
        demo.chat_format(HELLO, template="llama3", **{name: given})  # type: ignore[arg-type]


def test_a_warning_names_it(context: Context) -> None:
    with pytest.warns(UserWarning, match=f"the model does not know them; template='{CHATML_TOOLS}' does"):
        context.chat(HELLO, tools=[WEATHER], template="chatml", max_tokens=1)
