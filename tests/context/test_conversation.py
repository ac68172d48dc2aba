"""Chatting: replies from a model, and tokens that a model is not to write."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
from chats import HELLO, TEMPLATE
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CPU, SMALL
from moebind import AbortedError, Batch, ChatTemplateError, Context, Model, Sampler

THINK, DONE = 259, 260  # where tiny.TOKENS has its first words


def with_metadata(path: Path, **more: object) -> Path:
    """A tiny model whose file says more, in which two words are the control tokens of a template."""
    shape = tiny.Shape()
    metadata = tiny._metadata(shape)
    tokens, kinds = list(tiny.TOKENS), list(metadata["tokenizer.ggml.token_type"])  # type: ignore[call-overload]
    tokens[THINK], tokens[DONE] = "<think>", "</think>"
    kinds[THINK] = kinds[DONE] = int(gguf.TokenType.CONTROL)
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, **more}
    tiny._write_file(path, "llama", metadata, tiny._tensors(shape, np.random.default_rng(1)))
    return path


def only(*tokens: int) -> list[int]:
    return [token for token in range(len(tiny.TOKENS)) if token not in tokens]


# --- replies ---


def test_a_reply_is_streamed_and_read(talking: Context, demo: Model) -> None:
    reply = talking.chat(HELLO, max_tokens=8)
    assert reply.stop_reason is None
    pieces = list(reply)
    text = "".join(piece.text for piece in pieces)
    assert text == reply.text
    assert text
    assert reply.stop_reason == pieces[-1].stop_reason == "length"
    assert reply.prompt.prompt == demo.apply_chat_template(HELLO)
    assert reply.message == {"role": "assistant", "content": text, "reasoning_content": "", "tool_calls": []}


def test_a_message_can_be_asked_for_at_any_time(talking: Context) -> None:
    reply = talking.chat(HELLO, max_tokens=6)
    assert reply.message["content"] == ""
    so_far = ""
    for piece in reply:
        so_far += piece.text
        assert str(reply.message["content"]) == so_far
    assert reply.complete() == reply.message


def test_a_conversation_goes_on(talking: Context) -> None:
    messages: list[dict[str, Any]] = [*HELLO]
    messages.append(talking.chat(messages, max_tokens=6).complete())
    messages.append({"role": "user", "content": "Thanks"})
    talking.reset_timings()
    reply = talking.chat(messages, max_tokens=2)
    reply.complete()
    n_prompt = talking.model.str_to_token(reply.prompt.prompt).size
    assert 0 < talking.timings().n_p_eval < n_prompt, "the first turn was computed again"


def test_what_chat_hands_on(talking: Context) -> None:
    whole = str(talking.chat(HELLO, max_tokens=12).complete()["content"])
    stop = whole[5:8]
    reply = talking.chat(HELLO, max_tokens=12, stop=stop)
    assert reply.complete()["content"] == whole[: whole.find(stop)]
    assert reply.stop_reason == "stop"
    with Sampler.chain([Sampler.temp(2.0), Sampler.dist(7)]) as sampler:
        reply = talking.chat(HELLO, max_tokens=8, sampler=sampler, template="chatml", reuse_prefix=False)
        assert "SmolLM" not in reply.prompt.prompt
        assert reply.complete()["content"] != whole[:8]


def test_reasoning_in_control_tokens_is_seen(tmp_path: Path) -> None:
    """The text of control tokens is not given out, except of those that the template's parser needs."""
    path = with_metadata(tmp_path / "a.gguf", **{"tokenizer.ggml.suppress_tokens": only(THINK)})
    with Model.load_from_file(path, CPU) as model, model.new_context(SMALL) as context:
        reply = context.chat(HELLO, max_tokens=3, template=TEMPLATE)
        assert "<think>" in reply.prompt.preserved_tokens
        message = reply.complete()
        assert reply.text == "<think>" * 3
        assert message["reasoning_content"] == "<think>" * 2
        assert message["content"] == ""
        assert "".join(piece.text for piece in context.generate("Hello", max_tokens=3)) == ""


def test_aborting_a_reply(talking: Context) -> None:
    reply = talking.chat(HELLO, max_tokens=40)
    with pytest.raises(AbortedError):
        for piece in reply:
            if piece.index == 2:
                talking.abort()
    assert reply.message["content"] == reply.text
    assert talking.chat(HELLO, max_tokens=1).complete()["content"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"messages": []}, ValueError, "messages is empty"),
        ({"messages": "Hello"}, TypeError, "list of dicts"),
        ({"messages": [{"role": "user"}]}, ValueError, r"messages\[0\]"),
        ({"messages": [{"role": "user", "content": "a " * 4000}]}, ValueError, "larger n_ctx"),
        ({"template": "{{ f() }}"}, ChatTemplateError, "not a function"),
        ({"template": "{{ '' }}"}, ValueError, "no tokens"),
        ({"tools": 3}, TypeError, "tools"),
        ({"max_tokens": -2}, ValueError, "max_tokens"),
        ({"stop": [""]}, ValueError, "stop"),
        ({"stop": [3.5]}, TypeError, "stop"),
        ({"seq_id": 9}, ValueError, "seq_id"),
        ({"sampler": 3}, TypeError, "Sampler"),
        ({"reuse_prefix": None}, TypeError, "reuse_prefix"),
        ({"unknown": object()}, TypeError, "unknown"),
    ],
)
def test_bad_arguments(talking: Context, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        talking.chat(**{"messages": HELLO, **options})


def test_a_model_without_a_template(moe: Model) -> None:
    with moe.new_context(SMALL) as context:
        with pytest.raises(ChatTemplateError, match="no default chat template"):
            context.chat(HELLO)
        assert context.chat(HELLO, max_tokens=4, template="chatml").complete()["role"] == "assistant"


# --- suppressed tokens ---


@pytest.fixture(scope="module")
def suppressing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Never writes a token of an even number, nor any that ends the text."""
    tokens = [2, *range(0, len(tiny.TOKENS), 2), -5, 10**6]
    path = tmp_path_factory.mktemp("suppress") / "suppress.gguf"
    with Model.load_from_file(with_metadata(path, **{"tokenizer.ggml.suppress_tokens": tokens}), CPU) as model:
        yield model


def test_suppressed_tokens_are_told(suppressing: Model, moe: Model) -> None:
    assert suppressing.suppress_tokens.tolist() == list(range(0, len(tiny.TOKENS), 2))
    assert suppressing.suppress_tokens.dtype == np.int32
    suppressing.suppress_tokens[:] = 1  # a copy
    assert moe.suppress_tokens.size == 0


def test_grammars_and_samplers_in_python_keep_to_them(suppressing: Model) -> None:
    parts = [
        Sampler.grammar(suppressing, "root ::= [a-z ]*"),
        Sampler.from_callable(lambda c: c.sort()),
        Sampler.dist(1),
    ]
    with suppressing.new_context(SMALL) as context, Sampler.chain(parts) as chain:
        pieces = list(context.generate([1, 5], max_tokens=12, sampler=chain))
        assert len(pieces) == 12
        assert all(piece.token % 2 for piece in pieces)
        assert {*"".join(piece.text for piece in pieces)} <= {*"abcdefghijklmnopqrstuvwxyz "}


def test_greedy_generation_keeps_to_them(suppressing: Model) -> None:
    with suppressing.new_context(SMALL) as context:
        pieces = list(context.generate([1, 5], max_tokens=20))
        assert all(piece.token % 2 for piece in pieces)
        tokens = [1, 5]
        for piece in pieces[:6]:  # what is left is ranked as it was
            context.kv_cache_clear()
            context.decode(Batch.get_one(tokens))
            logits = context.get_logits_ith(-1)
            assert piece.token == 1 + 2 * int(logits[1::2].argmax())
            tokens.append(piece.token)


def test_samplers_keep_to_them(suppressing: Model) -> None:
    with suppressing.new_context(SMALL) as context, Sampler.dist(3) as sampler, Sampler.greedy() as greedy:
        assert all(piece.token % 2 for piece in context.generate([1, 5], max_tokens=40, sampler=sampler))
        context.kv_cache_clear()
        context.decode(Batch.get_one([1, 5]))
        logits = context.get_logits_ith(-1)
        before = logits.copy()
        assert all(sampler.sample(context) % 2 for _ in range(200))
        assert greedy.sample(context) == 1 + 2 * int(before[1::2].argmax())
        assert (logits == before).all(), "the logits were left changed"


def test_models_without_them_are_sampled_as_before(dense: Model) -> None:
    with dense.new_context(SMALL) as context:
        context.decode(Batch.get_one([1, 5]))
        with Sampler.greedy() as greedy:
            assert greedy.sample(context) == int(context.get_logits_ith(-1).argmax())


# --- characters ---


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), stop=st.lists(st.text(min_size=1, max_size=2), max_size=2))
def test_streams_never_give_half_a_character(byte_context: Context, seed: int, stop: list[str]) -> None:
    """The model writes random bytes; pieces are whole characters, and together what the bytes say."""
    with Sampler.dist(seed) as sampler:
        pieces = list(byte_context.generate([1], max_tokens=40, sampler=sampler, stop=stop))
    written = b"".join(byte_context.model.token_to_bytes(piece.token) for piece in pieces)
    # A character that max_tokens cuts off is left out.
    whole = codecs.getincrementaldecoder("utf-8")("replace").decode(written, final=pieces[-1].stop_reason != "length")
    text = "".join(piece.text for piece in pieces)
    places = [whole.find(each) for each in stop if each in whole]
    assert text == (whole[: min(places)] if places else whole)
    for end in range(len(pieces)):
        shown = "".join(piece.text for piece in pieces[: end + 1])
        assert text.startswith(shown)
        shown.encode()  # a lone surrogate would raise


@pytest.fixture(scope="module")
def byte_context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """Writes bytes that begin, continue or make characters, and nothing else."""
    likely = [3 + byte for byte in (0x41, 0xC3, 0xA9, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0x80, 0xFF)]
    path = tmp_path_factory.mktemp("bytes") / "bytes.gguf"
    with_metadata(path, **{"tokenizer.ggml.suppress_tokens": only(*likely)})
    with Model.load_from_file(path, CPU) as model, model.new_context(SMALL) as context:
        yield context
