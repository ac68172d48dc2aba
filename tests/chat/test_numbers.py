"""Numbers in chats reach the model as Python's json writes them, digit by digit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from moebind import ChatTemplateError, Model, ModelParams
from moebind.chat.grammar import schema_warnings
from moebind.chat.named_templates import chatml_tools

HELLO = [{"role": "user", "content": "Hello"}]
#: Writes arguments and tools, as most templates do.
TEMPLATE = chatml_tools()
#: Knows arguments as text only: the engine does not parse them.
AS_TEXT = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    '<call>{{ c.function.name }}"arguments": {{ c.function.arguments }}}</call>{% endfor %}\n{% endfor %}'
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("numbers") / "chat.gguf"
    tiny_vocab.write(path, tiny_vocab.bpe("gpt-2"), **{"tokenizer.chat_template": TEMPLATE})
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        yield model


def calling(arguments: object) -> list[dict[str, object]]:
    call = {"id": "abc123DEF", "type": "function", "function": {"name": "pay", "arguments": arguments}}
    return [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}]


def told(model: Model, arguments: object, template: str = TEMPLATE) -> str:
    """The arguments as the model reads them."""
    text = model.apply_chat_template(calling(arguments), template=template, add_generation_prompt=False)
    start = text.index('"arguments": ') + len('"arguments": ')
    return text[start : text.rindex("}")]


FLOATS = [48.8566969, 2.3514616, 1234567.89, 0.1, 1.0, -0.0, 1e16, 1e15, 123456789012345680.0, 1e-5, 1e-4, 5e-324]
FLOATS += [1.7976931348623157e308, 0.30000000000000004, 100.0, -1.5e-7, 2.0**63, 9007199254740993.0, 1e22, 1e23]
INTEGERS = [0, -1, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 12345678901234567890, -(2**63) - 1, 10**40]


@pytest.mark.parametrize("number", [*FLOATS, *INTEGERS])
@pytest.mark.parametrize("template", [TEMPLATE, AS_TEXT])
@pytest.mark.parametrize("as_text", [False, True])
def test_arguments_keep_their_numbers(model: Model, number: float, template: str, as_text: bool) -> None:
    arguments: Any = {"x": number, "list": [number, {"y": number}], "text": str(number)}
    assert told(model, json.dumps(arguments) if as_text else arguments, template) == json.dumps(arguments)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(arguments=st.dictionaries(st.text(), JSON, max_size=3), template=st.sampled_from([TEMPLATE, AS_TEXT]))
def test_any_arguments_come_back(model: Model, arguments: dict[str, Any], template: str) -> None:
    seen = json.loads(told(model, arguments, template))
    assert json.dumps(seen, sort_keys=True) == json.dumps(arguments, sort_keys=True)


@settings(max_examples=60)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**64 - 1))
def test_template_arguments_are_written_as_python_does(model: Model, number: float) -> None:
    template = "{{ x }} {{ x | tojson }} {{ x | string }} {{ 'a' ~ x }} {{ [x, x] | join(';') }} "
    template += "{{ {'k': [x]} | tojson }}"
    text = model.apply_chat_template(HELLO, template=template, x=number)
    assert text == f'{number!r} {number!r} {number!r} a{number!r} {number!r};{number!r} {{"k": [{number!r}]}}'


def test_numbers_of_the_template_itself(model: Model) -> None:
    template = "{{ 0.1 + 0.2 }} {{ 7 / 2 }} {{ 3.0 }} {{ 48.8566969 }} {{ '2.3514616' | float }} {{ 1 + 2 }}"
    text = model.apply_chat_template(HELLO, template=template)
    assert text == "0.30000000000000004 3.5 3.0 48.8566969 2.3514616 3"


def test_schemas_keep_their_numbers(model: Model) -> None:
    numbers = {"maximum": 123456.75, "minimum": 48.8566969, "default": 2**64 - 1, "examples": [1.0, 1e16, 2**63]}
    numbers |= {"enum": [2**64, -(2**63) - 1, 10**40], "const": 2**70}
    tool = {"type": "function", "function": {"name": "pay", "parameters": {"properties": {"x": numbers}}}}
    assert json.dumps(numbers) in model.apply_chat_template(HELLO, tools=[tool])
    prompt = model.chat_format(HELLO, tools=[tool], tool_choice="required")
    assert json.dumps(numbers) in prompt.prompt
    assert any("'x'" in each or "too many digits" in each for each in schema_warnings(prompt, [tool], True))


def test_large_integers_count_as_numbers_that_no_sum_takes(model: Model) -> None:
    template = "{{ x is number }} {{ x == x }} {{ x == 5 }}"
    assert model.apply_chat_template(HELLO, template=template, x=2**64 - 1) == "True True False"
    for use in ("x % 10", "x > 5", "x | float", "x + 1"):
        with pytest.raises(ChatTemplateError, match="18446744073709551615 takes more than 63 bits"):
            model.apply_chat_template(HELLO, template="{{ " + use + " }}", x=2**64 - 1)


def test_a_reply_keeps_its_numbers(model: Model) -> None:
    tool = {"type": "function", "function": {"name": "pay", "parameters": {"type": "object", "properties": {}}}}
    for number in ("48.8566969", "12345678901234567890", "123456789012345678901234567890", "1.0", "1e16"):
        reply = f'<tool_call>\n{{"name": "pay", "arguments": {{"x": {number}}}}}\n</tool_call>'
        message = model.parse_chat_response(reply, tools=[tool])
        assert message["tool_calls"][0]["function"]["arguments"] == f'{{"x": {number}}}'
        assert f'"x": {json.dumps(json.loads(number))}' in model.apply_chat_template([*HELLO, message], tools=[tool])
