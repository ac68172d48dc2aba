"""Chat templates: what they write, and those that are not there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import chats
import pytest
import tiny_vocab
from chats import HELLO, TEMPLATE, VOCAB_ONLY, WEATHER
from hypothesis import given
from hypothesis import strategies as st

import moebind
from moebind import ChatTemplateError, Model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with chats.templates(tmp_path_factory.mktemp("chat")) as model:
        yield model


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model without a template."""
    path = tiny_vocab.write(tmp_path_factory.mktemp("chat") / "bare.gguf", tiny_vocab.bpe("gpt-2"))
    with Model.load_from_file(path, VOCAB_ONLY) as model:
        yield model


# --- rendering ---


def test_a_chat_is_rendered(model: Model) -> None:
    chat = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hi"}]
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert model.apply_chat_template(chat[:2]) == text
    assert model.apply_chat_template(chat, add_generation_prompt=False) == text + "Hi<|im_end|>\n"


def test_the_real_template_of_the_demo_model(demo: Model) -> None:
    text = demo.apply_chat_template(HELLO)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_arguments_reach_the_template(model: Model) -> None:
    assert model.apply_chat_template(HELLO, enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    assert model.apply_chat_template(HELLO, enable_thinking=True).endswith("assistant\n")
    template = "{{ a.b[1] }}|{{ text }}|{{ number }}|{{ nothing is none }}|{{ yes }}"
    arguments: dict[str, Any] = {"a": {"b": (1, 2)}, "text": "ü\0'", "number": 1.5, "nothing": None, "yes": True}
    assert model.apply_chat_template(HELLO, template=template, **arguments) == "2|ü\0'|1.5|True|True"


def test_tools_are_rendered(model: Model) -> None:
    text = model.apply_chat_template(HELLO, tools=[WEATHER])
    assert json.dumps(WEATHER) in text
    assert "Only for tools" in text, "the template that the file has for tools was not used"
    assert "weather" not in model.apply_chat_template(HELLO, tools=[])


def test_calls_and_their_results_are_rendered(model: Model) -> None:
    chat = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
                {"function": {"name": "weather", "arguments": {"city": "Oslo"}}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "sunny"}]},
    ]
    text = model.apply_chat_template(chat, tools=[WEATHER])
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>' in text
    assert '{"city": "Oslo"}' in text
    assert "<tool_response>\nsunny\n</tool_response>" in text


def test_parts_of_a_message_are_joined(model: Model) -> None:
    parts = [("text", "Look:"), ("media_marker", "<__media__>"), ("text", "What is it?"), ("text", "Say.")]
    chat = [{"role": "user", "content": [{"type": kind, "text": text} for kind, text in parts]}]
    text = model.apply_chat_template(chat, template="{{ messages[0].content }}")
    assert text == "Look:<__media__>What is it?\nSay."


def test_bytes_that_a_template_tears_out_of_a_character_are_replaced(model: Model) -> None:
    assert model.apply_chat_template(HELLO, template="{{ 'é'[0] }}{{ 'é' }}") == "\ufffdé"


def test_templates_have_names(model: Model, bare: Model) -> None:
    assert set(model.chat_template_names) == {"default", "tool_use", "short"}
    assert model.chat_template() == model.chat_template("default") == TEMPLATE
    assert model.chat_template("short") == "{{ messages[0].content }}!"
    assert model.apply_chat_template(HELLO, template="short") == "Hello!"
    assert model.apply_chat_template(HELLO, template="default") == model.apply_chat_template(HELLO)
    with pytest.raises(ChatTemplateError, match=r"no chat template named 'long': it has default"):
        model.apply_chat_template(HELLO, template="long")
    assert bare.chat_template_names == ()
    with pytest.raises(ChatTemplateError, match="give one, as Jinja source, 'chatml' or 'chatml-tools'"):
        bare.apply_chat_template(HELLO)
    chatml = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert bare.apply_chat_template(HELLO, template="chatml") == chatml


def test_templates_of_llama_cpps_own(bare: Model) -> None:
    names = moebind.chat_builtin_templates()
    assert {"llama3", "chatml", "gemma"} <= set(names)
    for name in names:
        assert "Hello" in bare.apply_chat_template(HELLO, template=name)
    text = bare.apply_chat_template(HELLO, template="llama3")
    assert "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>" in text
    assert bare.parse_chat_response("<think>Hi", template="llama3")["content"] == "<think>Hi"
    with pytest.raises(ChatTemplateError, match="does not know tools"):
        bare.apply_chat_template(HELLO, template="llama3", tools=[WEATHER])
    with pytest.raises(ValueError, match="NUL"):
        bare.apply_chat_template([{"role": "user", "content": "a\0b"}], template="llama3")


def test_templates_that_do_nothing(model: Model) -> None:
    assert model.apply_chat_template(HELLO, template="{# nothing #}") == ""
    assert model.apply_chat_template(HELLO, template="Text{# and nothing #}") == "Text"


def test_many_templates_in_turn(model: Model) -> None:
    for turn in range(3):
        for number in range(12):
            text = model.apply_chat_template(HELLO, template=f"{{{{ messages[0].role }}}}{number}")
            assert text == f"user{number}", turn


def test_the_last_message_can_be_continued(model: Model) -> None:
    chat = [*HELLO, {"role": "assistant", "content": "Hi, I am"}]
    text = model.apply_chat_template(chat, continue_final_message=True)
    assert text.endswith("Hi, I am")
    assert "Hello" in text


def test_threads_share_a_model(model: Model) -> None:
    expected = model.apply_chat_template(HELLO, tools=[WEATHER])
    texts: list[str] = []

    def render() -> None:
        texts.extend(model.apply_chat_template(HELLO, tools=[WEATHER]) for _ in range(5))

    threads = [threading.Thread(target=render) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected] * 20


@given(
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text()}),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_is_rendered_as_it_is(model: Model, chat: list[dict[str, str]]) -> None:
    text = model.apply_chat_template(chat, add_generation_prompt=False)
    expected = "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in chat)
    assert text == expected


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # What the engine writes as JSON it leaves as it is; Python's json reads it again.
    | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_json_can_be_an_argument(model: Model, value: object) -> None:
    text = model.apply_chat_template(HELLO, template="{{ messages[0].content }} {{ value is defined }}", value=value)
    assert text == "Hello True"


# --- schemas ---


def test_a_schema_makes_a_grammar(model: Model) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    prompt = model.chat_format(HELLO, json_schema=schema)
    assert "root ::=" in prompt.grammar
    assert not prompt.grammar_lazy
    assert model.chat_format(HELLO, json_schema=json.dumps(schema)).grammar == prompt.grammar


# --- templates that are not there ---


def test_chat_template_that_is_not_there(moe: Model) -> None:
    with pytest.raises(moebind.ChatTemplateError, match="no chat template"):
        moe.chat_template()
    with pytest.raises(moebind.ChatTemplateError, match="tool_use"):
        moe.chat_template("tool_use")
