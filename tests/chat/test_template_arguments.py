"""Arguments of templates: which are passed on, and what is said of those that nobody reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import tiny_vocab

from moebind import Model, ModelParams
from moebind.chat.template_arguments import unread_arguments

HELLO = [{"role": "user", "content": "Hello"}]
TEMPLATE = "{{ messages[0].content }} {{ effort | default('none') }}{% if enable_thinking %} thinking{% endif %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("arguments") / "chat.gguf"
    tiny_vocab.write(path, tiny_vocab.bpe("gpt-2"), **{"tokenizer.chat_template": TEMPLATE})
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        yield model


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "Hello none thinking"),
        ({"effort": "low"}, "Hello low thinking"),
        ({"template_kwargs": {"effort": "low", "enable_thinking": False}}, "Hello low"),
        ({"template_kwargs": {"effort": "low"}, "enable_thinking": False}, "Hello low"),
        ({"template_kwargs": None}, "Hello none thinking"),
        ({"enable_thinking": None}, "Hello none thinking"),
        # Given to every model, whether it knows them or not.
        ({"reasoning_effort": "low", "thinking": True}, "Hello none thinking"),
    ],
)
def test_arguments_are_keywords_or_in_a_dict(model: Model, options: Mapping[str, Any], text: str) -> None:
    assert model.apply_chat_template(HELLO, **options) == text
    assert model.chat_format(HELLO, **options).prompt == text


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"enable_thinking": 1}, TypeError, "enable_thinking is 1; it takes True or False"),
        ({"template_kwargs": {"enable_thinking": "no"}}, TypeError, "takes True or False"),
        ({"template_kwargs": ["effort"]}, TypeError, "it takes a dict"),
        ({"template_kwargs": {1: 2}}, TypeError, "it takes names"),
        ({"template_kwargs": {"tools": []}}, TypeError, "'tools', which the template gets from moebind"),
        ({"template_kwargs": {"effort": 1}, "effort": 2}, TypeError, "'effort' is given as a keyword and in"),
        ({"template_kwargs": {"effort": object()}}, TypeError, "effort is .* JSON cannot hold"),
        ({"tool": []}, TypeError, "did you mean 'tools'"),
        ({"add_generation_promt": False}, TypeError, "did you mean 'add_generation_prompt'"),
        ({"toolchoice": "none"}, TypeError, "did you mean 'tool_choice'"),
        ({"template_kwarg": {}}, TypeError, "did you mean 'template_kwargs'"),
        ({"template_kwargs": {"jsonschema": {}}}, TypeError, "did you mean 'json_schema'"),
    ],
)
def test_bad_arguments(model: Model, options: Mapping[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        model.apply_chat_template(HELLO, **options)
    with pytest.raises(error, match=told):
        model.parse_chat_response("Hi", **options)


def test_an_argument_that_the_template_does_not_mention(model: Model) -> None:
    for use in (model.apply_chat_template, model.chat_format):
        with pytest.warns(UserWarning, match="does not mention the argument 'temperature'") as caught:
            use(HELLO, temperature=0.5)
        assert [each.filename for each in caught] == [__file__]
    with pytest.warns(UserWarning, match="'effort'"):
        model.apply_chat_template(HELLO, template="chatml", effort="low")


def test_a_name_that_the_template_has_is_never_a_slip() -> None:
    assert unread_arguments(["tool", "x"], ["{% if tool %}", "{{ x }}"], ["tools"]) == []
    assert unread_arguments(["x"], ["{{ xy }}"], ["tools"]) == ["x"]
