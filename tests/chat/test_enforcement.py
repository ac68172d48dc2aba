"""Warnings about calls that no grammar holds to their schema, judged by the grammar that llama.cpp made."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import every_template
import pytest
import tiny_vocab

from moebind import ChatTemplateError, Model, ModelParams
from moebind.chat.grammar import schema_warnings

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
