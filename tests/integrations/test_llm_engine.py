"""Prompts of the command-line tool llm, answered by moebind."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

llm = pytest.importorskip("llm", reason="needs the extra [llm]")

from llm.parts import AttachmentPart, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from moebind import ContextParams
from moebind.integrations import llm_engine
from moebind.integrations.llm_engine import Engine, messages_of
from moebind_launcher.llm_plugin import Chat, Embeddings

#: Everything on the CPU, with one thread; the tiny models have no template of their own.
SMALL = {"n_gpu_layers": 0, "n_threads": 1, "n_ctx": 2048, "template": "chatml-tools"}


@pytest.fixture
def chat(tiny_path: Callable[..., Path]) -> Chat:
    return Chat("moebind/tiny", str(tiny_path(n_expert=4, n_ctx_train=4096)))


def engine(chat: Chat) -> Engine:
    assert chat._engine is not None
    return chat._engine


def idle(chat: Chat) -> int:
    """How many contexts wait for their conversations."""
    gc.collect()
    return sum(len(each._idle) for each in engine(chat)._loaded)


def test_a_reply_is_what_moebind_writes(chat: Chat) -> None:
    response = chat.prompt("Hello", system="Be brief.", max_tokens=12, **SMALL)
    chunks = list(response)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    model = engine(chat)._loaded[0].model
    with model.new_context(ContextParams(n_ctx=2048, n_threads=1, n_threads_batch=1)) as context:
        reply = context.chat(messages, max_tokens=12, template="chatml-tools")
        assert "".join(chunks) == reply.complete()["content"] != ""
    assert len(chunks) > 1
    usage = response.usage()
    assert (usage.input, usage.output) == (reply.usage.prompt_tokens, reply.usage.generated_tokens)
    assert response.response_json == {"stop_reason": reply.stop_reason}


def test_options_choose_the_tokens(chat: Chat) -> None:
    hot = {"temperature": 1.5, "top_k": 50, "max_tokens": 12, **SMALL}
    first, again, other = (chat.prompt("Hello", seed=seed, **hot).text() for seed in (1, 1, 2))
    assert first == again != other
    whole = chat.prompt("Hello", max_tokens=12, **SMALL).text()
    stopped = chat.prompt("Hello", max_tokens=12, stop=whole[3:5], **SMALL)
    assert stopped.text() == whole[: whole.index(whole[3:5])]
    assert stopped.response_json == {"stop_reason": "stop"}


def test_a_conversation_goes_on_in_its_context(chat: Chat) -> None:
    first, second = chat.conversation(), chat.conversation()
    replies = {}
    for name, conversation in (("first", first), ("second", second)):
        replies[name] = conversation.prompt(f"I am the {name}.", max_tokens=8, **SMALL)
        replies[name].text()
        assert replies[name].usage().details is None  # nothing of the other's
    assert idle(chat) == 2
    for name, conversation in (("first", first), ("second", second)):
        reply = conversation.prompt("Who am I?", max_tokens=8, **SMALL)
        reply.text()
        cached = reply.usage().details["cached_tokens"]
        assert replies[name].usage().input <= cached < reply.usage().input
    # A context goes with its conversation.
    del first, second, conversation, replies, reply
    assert idle(chat) == 0


def test_prompts_without_a_conversation_share_what_they_begin_with(chat: Chat) -> None:
    system = "Be brief, and kind, and always right."
    chat.prompt("Hello", system=system, max_tokens=1, **SMALL).text()
    response = chat.prompt("Bye", system=system, max_tokens=1, **SMALL)
    response.text()
    assert response.usage().details["cached_tokens"] > len(system)
    assert idle(chat) == 1


def test_replies_side_by_side(chat: Chat) -> None:
    alone = {text: chat.prompt(text, max_tokens=8, **SMALL).text() for text in ("Hello", "Bye")}
    running = {text: iter(chat.prompt(text, max_tokens=8, **SMALL)) for text in alone}
    written = {text: next(each) for text, each in running.items()}
    for text, each in running.items():
        assert written[text] + "".join(each) == alone[text]
    assert idle(chat) == 1


def test_a_reply_that_is_left_gives_its_context_back(chat: Chat) -> None:
    pieces = iter(chat.prompt("Hello", max_tokens=8, **SMALL))
    next(pieces)
    assert idle(chat) == 0
    del pieces
    assert idle(chat) == 1


def test_another_placement_loads_the_model_again(chat: Chat) -> None:
    chat.prompt("Hello", max_tokens=1, **SMALL).text()
    before = engine(chat)._loaded[0].model
    chat.prompt("Hello", max_tokens=1, **{**SMALL, "n_ctx": 1024}).text()
    assert engine(chat)._loaded[0].model is before
    pieces = iter(chat.prompt("Hello", max_tokens=8, **SMALL))
    begun = next(pieces)
    chat.prompt("Hello", max_tokens=1, cpu_moe=True, **SMALL).text()
    assert engine(chat)._loaded[0].model is not before
    assert not before.closed  # a reply goes on in it
    assert begun + "".join(pieces) == chat.prompt("Hello", max_tokens=8, **SMALL).text()
    assert before.closed


def test_objects_for_one_file_share_it(chat: Chat) -> None:
    chat.prompt("Hello", max_tokens=1, **SMALL).text()
    other, embeddings = Chat("moebind/tiny", chat.path), Embeddings("moebind/tiny", chat.path)
    other.prompt("Hello", max_tokens=1, **SMALL).text()
    embeddings.embed("Hello")
    model = engine(chat)._loaded[0].model
    assert other._engine is embeddings._engine is chat._engine
    del other, embeddings
    gc.collect()
    assert not model.closed
    chat._engine = None
    gc.collect()
    assert model.closed


def test_a_schema(chat: Chat) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    response = chat.prompt("Where?", schema=schema, **SMALL)
    found = json.loads(response.text())
    assert found["city"] in {"Paris", "Rome"}
    assert isinstance(found["big"], bool)


def weather(celsius: bool) -> str:
    """The weather."""
    return f"mild {celsius}"


def test_tools_are_called_and_answered(chat: Chat) -> None:
    chain = chat.chain("How is it?", tools=[weather], options={**SMALL, "tool_choice": "required", "max_tokens": 120})
    asked, answered = list(chain.responses())
    (call,) = asked.tool_calls()
    assert (call.name, [*call.arguments]) == ("weather", ["celsius"])
    assert answered.tool_calls() == []
    sent = messages_of(answered.prompt.messages)
    assert [each["role"] for each in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"] == [
        {
            "id": call.tool_call_id,
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps(call.arguments)},
        }
    ]
    assert sent[2]["content"] == f"mild {call.arguments['celsius']}"
    assert sent[2]["tool_call_id"] == call.tool_call_id
    # The context has what came before the reply.
    assert answered.usage().details["cached_tokens"] >= asked.usage().input - 2


def test_a_call_that_is_cut_off(chat: Chat) -> None:
    options = {**SMALL, "tool_choice": "required", "max_tokens": 60}
    with pytest.raises(ValueError, match=r"ended \(length\) in the middle of a call of 'weather': raise max_tokens"):
        chat.chain("How is it?", tools=[weather], options=options).text()


def test_messages() -> None:
    given = [
        llm.system("Be brief."),
        llm.user("a", "b"),
        llm.assistant(ReasoningPart(text="hm"), TextPart(text="c"), ToolCallPart("t", {"x": 1}, "1")),
        llm.tool_message(ToolResultPart("t", "one", "1"), ToolResultPart("t", "two")),
    ]
    assert messages_of(given) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab"},
        {
            "role": "assistant",
            "content": "c",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "t", "arguments": '{"x": 1}'}}],
        },
        {"role": "tool", "name": "t", "content": "one", "tool_call_id": "1"},
        {"role": "tool", "name": "t", "content": "two"},
    ]


def test_messages_with_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="a part of the kind 'attachment'; moebind takes text"):
        messages_of([llm.user(AttachmentPart(llm.Attachment(content=b"GIF8")))])


def test_a_picture_in_a_prompt_is_refused(chat: Chat) -> None:
    with pytest.raises(ValueError, match="does not support attachments"):
        chat.prompt("What is it?", attachments=[llm.Attachment(content=b"GIF8", type="image/gif")])


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"n_ctx": -5}, ValueError, "n_ctx is -5"),
        ({"n_ctx": 256}, ValueError, "a larger n_ctx"),
        ({"template": "{% if %}"}, Exception, "."),
        ({"params": "/none/fit.json"}, FileNotFoundError, "does not exist"),
    ],
)
def test_what_is_refused(chat: Chat, options: dict[str, Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        chat.prompt("a" * 300, max_tokens=1, **{**SMALL, **options}).text()
    assert chat.prompt("Hello", max_tokens=1, **SMALL).usage().output == 1  # it goes on


def test_embeddings(chat: Chat) -> None:
    embeddings = Embeddings("moebind/tiny", chat.path)
    texts = ["a cat", "a theorem", "a " * 4000]
    found = np.array(list(embeddings.embed_multi(texts)), np.float32)
    model = embeddings._engine._loaded[0].model  # type: ignore[union-attr]
    assert np.allclose(found, model.embed(texts, truncate=True), atol=1e-5)
    assert np.array(embeddings.embed("a cat")).shape == (model.n_embd,)


def test_the_list(tiny_path: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_engine, "find_spec", lambda name: None)  # without a look into the Hub's cache
    (tmp_path / "tiny.gguf").symlink_to(tiny_path(n_expert=4))
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    known = {str(tmp_path / "tiny.gguf"): "moebind/tiny"}
    table = llm_engine.listing(known, [str(tmp_path)], fits=False)
    assert "moebind/tiny" in table
    assert "4, 2 used" in table
    assert "torn.gguf" in table
    assert " fits" in llm_engine.listing(known, [str(tmp_path)], fits=True).splitlines()[0]
