"""Warnings about calls that no grammar holds to their schema, judged by the grammar that llama.cpp made."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

import every_template
import pytest
import tiny_vocab

from moebind import ChatTemplateError, GrammarError, Model, ModelParams
from moebind.chat.grammar import grammar_sampler, schema_warnings

HELLO = [{"role": "user", "content": "Hello"}]
PLAIN = {"where": {"type": "string", "description": "A place"}, "n": {"type": "integer"}}
CHOICE = {"where": {"enum": ["Rome", "Oslo"], "type": "string"}, "n": {"type": "integer"}}
LENGTH = {"where": {"type": "string", "maxLength": 5}, "n": {"type": "integer"}}
LOST = {"where": {"type": "string"}, "n": {"type": "integer", "multipleOf": 5}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tiny_vocab.write(tmp_path_factory.mktemp("held") / "chat.gguf", tiny_vocab.bpe("gpt-2"))
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        yield model


def told(model: Model, template: str, properties: dict[str, Any], choice: str = "auto") -> str:
    parameters = {"type": "object", "properties": properties, "required": ["where"]}
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": parameters}}]
    prompt = model.chat_format(HELLO, tools=tools, template=every_template.templates()[template], tool_choice=choice)
    return "\n".join(schema_warnings(prompt, tools, True))


@pytest.mark.parametrize(
    ("template", "properties", "warned"),
    [
        # The arguments are JSON, and the grammar has their schema.
        ("Qwen-Qwen3-0.6B", PLAIN, ""),
        ("Qwen-Qwen3-0.6B", CHOICE, ""),
        ("Qwen-Qwen3-0.6B", LENGTH, ""),
        ("Qwen-Qwen3-0.6B", LOST, "#/properties/n: 'multipleOf' cannot"),
        # Each argument is between tags: a str is written as it is, with no schema at all.
        ("Qwen3-Coder", PLAIN, ""),
        ("Qwen3-Coder", CHOICE, "'where' may be any text"),
        ("Qwen3-Coder", LENGTH, "'where' may be any text"),
        ("Qwen3-Coder", LOST, "'n': .*'multipleOf' cannot"),
        ("GLM-4.6", PLAIN, ""),
        ("GLM-4.6", CHOICE, "'where' may be any text"),
        # In the manner of Python, where llama.cpp checks no types and demands nothing; and in one of Google's own.
        ("LFM2.5-8B-A1B", PLAIN, "(?s)'n' may be any text or value.*'where' may be left out"),
        ("google-gemma-4-31B-it", PLAIN, "they may be anything"),
    ],
)
def test_what_of_a_schema_is_lost_depends_on_the_template(
    model: Model, template: str, properties: dict[str, Any], warned: str
) -> None:
    for choice in ("auto", "required"):
        text = told(model, template, properties, choice)
        if warned:
            assert re.search(warned, text)
        else:
            assert text == ""


def test_calls_that_nothing_announces_are_held_to_nothing(model: Model) -> None:
    name = "meta-llama-Llama-3.1-8B-Instruct"
    assert "nothing marks where this template's calls begin" in told(model, name, PLAIN)
    assert told(model, name, PLAIN, "required") == ""


def test_calls_that_are_not_read_are_told(model: Model) -> None:
    assert "finds no form of a call" in told(model, "ibm-granite-granite-3.3-2B-Instruct", PLAIN)


def test_every_template_tells_something_or_holds(model: Model) -> None:
    """The schema of arguments that are anything but text is in the grammar, or there is a warning."""
    silent = {}
    for name, template in every_template.templates().items():
        parameters = {"type": "object", "properties": CHOICE, "required": ["where", "n"]}
        tools = [{"type": "function", "function": {"name": "look_up", "parameters": parameters}}]
        try:
            prompt = model.chat_format(HELLO, tools=tools, template=template)
        except ChatTemplateError:
            continue
        if not any(schema_warnings(prompt, tools, True)):
            silent[name] = prompt.grammar
    assert len(silent) > 20
    for name, grammar in silent.items():
        assert "Oslo" in grammar, name


def test_no_warning_is_raised_by_rendering(model: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told(model, "Qwen3-Coder", CHOICE)


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("template", ["NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "Qwen-Qwen3-0.6B", "chatml-tools"])
def test_one_call_is_one_call(model: Model, template: str, choice: str) -> None:
    tools = [with_properties("look_up", {"n": {"type": "integer"}})]
    call = '<tool_call>\n{"name": "look_up", "arguments": {"n": 1}}\n</tool_call>\n'
    for several in (False, True):
        prompt = model.chat_format(
            HELLO,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=several,
            template=every_template.templates().get(template, template),
        )
        for count in (1, 2, 3):
            with grammar_sampler(model, prompt, frozenset()) as sampler:  # type: ignore[union-attr]
                tokens = model.str_to_token(call * count, add_special=False, parse_special=False).tolist()
                whole = all(map(sampler.try_accept, tokens)) and sampler.try_accept(model.token_eos)
            assert whole == (several or count == 1)


def test_no_template_repeats_a_call_that_may_come_once(model: Model) -> None:
    tools = [with_properties("look_up", {"n": {"type": "integer"}})]
    repeating = set()
    for name, template in every_template.templates().items():
        for several in (False, True):
            prompt = model.chat_format(HELLO, tools=tools, parallel_tool_calls=several, template=template)
            if re.search(r"^tool-calls ::= .*tool-call\b.*[+*]$", prompt.grammar, re.MULTILINE):
                repeating.add((name, several))
    assert len(repeating) > 10
    assert all(several for _, several in repeating)


# --- schemas of tools that a grammar cannot hold to whole ---


def called(model: Model, tools: list[dict[str, Any]], name: str, arguments: str) -> bool:
    """Whether the grammar allows this call."""
    prompt = model.chat_format(
        HELLO, tools=tools, tool_choice="required", template=every_template.templates()["Qwen-Qwen3-0.6B"]
    )
    sampler = grammar_sampler(model, prompt, frozenset())
    assert sampler is not None
    reply = f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    with sampler:
        tokens = model.str_to_token(reply, add_special=False, parse_special=False).tolist()
        return all(map(sampler.try_accept, tokens)) and sampler.try_accept(model.token_eos)


def with_properties(name: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [*properties], **more}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize(
    ("properties", "warned", "good", "bad"),
    [
        ({"text": {"type": "string", "maxLength": 2000}}, "", '{"text": "a"}', '{"text": 1}'),
        ({"text": {"type": "string", "maxLength": 10_000}}, "'maxLength' is 10000", '{"text": "a"}', '{"text": 1}'),
        (
            {"ids": {"type": "array", "items": {"type": "integer"}, "maxItems": 5000}},
            "'maxItems' is 5000",
            '{"ids": [1]}',
            '{"ids": ["1"]}',
        ),
        ({"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "", '{"next": {"next": null}}', '{"next": {"x": 1}}'),
        ({"anything": True}, "", '{"anything": [1]}', '{"other": [1]}'),
        ({"n": {"type": "number", "minimum": 0}}, "'minimum' of a number", '{"n": -1}', '{"n": "1"}'),
    ],
)
def test_a_tool_that_asks_too_much_is_held_to_the_rest(
    model: Model, properties: dict[str, Any], warned: str, good: str, bad: str
) -> None:
    tools = [with_properties("harmless", {"x": {"type": "integer"}}), with_properties("save_note", properties)]
    prompt = model.chat_format(HELLO, tools=tools, template=every_template.templates()["Qwen-Qwen3-0.6B"])
    assert json.dumps(properties) in prompt.prompt  # the model is told of it as it is
    assert warned in "\n".join(schema_warnings(prompt, tools, True)) or not warned
    assert bool(any(schema_warnings(prompt, tools, True))) == bool(warned)
    assert called(model, tools, "save_note", good)
    assert not called(model, tools, "save_note", bad)
    assert called(model, tools, "harmless", '{"x": 3}')


def test_definitions_of_one_name_in_two_tools(model: Model) -> None:
    place, number = {"enum": ["Rome"]}, {"type": "integer"}
    tools = [
        with_properties("go", {"to": {"$ref": "#/$defs/Target"}}, **{"$defs": {"Target": place}}),
        with_properties("count", {"to": {"$ref": "#/$defs/Target"}}, **{"$defs": {"Target": number}}),
    ]
    assert called(model, tools, "go", '{"to": "Rome"}')
    assert not called(model, tools, "go", '{"to": 3}')
    assert called(model, tools, "count", '{"to": 3}')
    assert not called(model, tools, "count", '{"to": "Rome"}')


def test_arguments_come_in_the_order_of_the_schema(model: Model) -> None:
    properties = {"why": {"type": "string"}, "to": {"type": "null"}}
    tools = [with_properties("go", properties)]
    tools[0]["function"]["parameters"]["required"] = ["to"]
    assert called(model, tools, "go", '{"why": "x", "to": null}')
    assert called(model, tools, "go", '{"to": null}')
    assert not called(model, tools, "go", '{"to": null, "why": "x"}')


def test_a_schema_can_be_held_to_in_part(model: Model) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "number", "minimum": 0}}, "required": ["n"]}
    with pytest.raises(GrammarError, match="'minimum' of a number"):
        model.chat_format(HELLO, template="chatml", json_schema=schema)
    with pytest.warns(UserWarning, match="does not hold a reply to all of the JSON schema.*'minimum' of a n") as caught:
        prompt = model.chat_format(HELLO, template="chatml", json_schema=schema, strict=False)
    assert [each.filename for each in caught] == [__file__]
    assert "response-format" in prompt.grammar
