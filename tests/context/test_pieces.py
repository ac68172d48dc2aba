"""What generating gives: completions, usage, and what remembers them."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import AsyncIterable, Iterator

import pytest
from chats import HELLO

from conftest import SMALL
from moebind import AbortedError, ChatReply, Completion, Context, Model, NumberedPieces, Piece, Pieces, Usage
from moebind.context.pieces import Record

PROMPT = [1, 7, 8, 9]


@pytest.fixture
def context(dense: Model):  # type: ignore[no-untyped-def]
    with dense.new_context(SMALL) as context:
        yield context


def test_a_completion_is_all_of_it(context: Context) -> None:
    pieces = list(context.generate(PROMPT, max_tokens=9))
    completion = context.generate(PROMPT, max_tokens=9, reuse_prefix=False).complete()
    assert completion == Completion(
        "".join(piece.text for piece in pieces), "length", None, Usage(4, 0, 9), tuple(pieces)
    )
    assert str(completion) == completion.text
    assert completion.tokens == tuple(piece.token for piece in pieces)
    assert completion.logprobs is None
    assert completion.usage.total_tokens == 13
    assert pickle.loads(pickle.dumps(completion)) == completion  # noqa: S301  # our own


def test_a_completion_has_what_came_before(context: Context) -> None:
    whole = context.generate(PROMPT, max_tokens=9).complete()
    pieces = context.generate(PROMPT, max_tokens=9)
    assert pieces.usage == Usage(4, 0, 0)
    first = next(pieces)
    assert (pieces.text, pieces.stop_reason) == (first.text, None)
    assert pieces.usage == Usage(4, 3, 1)
    assert pieces.complete().text == whole.text == pieces.text
    assert pieces.complete() == pieces.complete()
    assert (pieces.stop_reason, pieces.stop) == ("length", None)


def test_which_stop_came(context: Context) -> None:
    tokens = context.generate(PROMPT, max_tokens=9).complete().tokens
    pieces = context.generate(PROMPT, max_tokens=9, stop=[tokens[3]])
    completion = pieces.complete()
    assert (completion.stop_reason, completion.stop, pieces.stop) == ("stop", tokens[3], tokens[3])
    assert len(completion.tokens) == tokens.index(tokens[3]) + 1, "the token that stopped it counts"


def test_nothing_asked_for(context: Context) -> None:
    pieces = context.generate(PROMPT, max_tokens=0)
    assert pieces.stop_reason == "length"
    assert pieces.complete() == Completion("", "length", None, Usage(4, 0, 0), ())
    reply = context.chat(HELLO, max_tokens=0, template="chatml")
    assert reply.complete()["content"] == ""
    assert reply.stop_reason == "length"


def test_closing(context: Context) -> None:
    for stream in (context.generate(PROMPT), context.chat(HELLO, template="chatml")):
        first = next(stream)
        stream.close()
        stream.close()
        assert list(stream) == []
        assert (stream.text, stream.stop_reason) == (first.text, None)
        with stream as same:
            assert same is stream
    with context.generate(PROMPT) as pieces:
        next(pieces)
    assert pieces.complete().stop_reason is None
    with context.generate_many([PROMPT]) as many:
        next(many)
    assert list(many) == []
    unbegun = context.generate(PROMPT)
    unbegun.close()
    assert list(unbegun) == []


def test_what_failed_keeps_what_came(context: Context) -> None:
    pieces = context.generate(PROMPT)
    next(pieces)
    context.abort()
    with pytest.raises(AbortedError):
        pieces.complete()
    assert len(pieces.complete().tokens) == 1
    assert pieces.stop_reason is None


def test_texts_are_joined_as_they_come() -> None:
    record = Record(3)
    for index, text in enumerate(["a", "", "bc"]):
        record.pieces.append(Piece(index, text, index))
        assert record.text == "abc"[: [1, 1, 3][index]]
    assert record.usage == Usage(3, 0, 3)


def test_pieces_are_values() -> None:
    piece = Piece(1, "a", 0)
    assert piece == Piece(1, "a", 0, None, None) != Piece(1, "a", 0)._with_score(-1.0, ())
    assert (piece.logprob, piece.top) == (None, ())
    assert "logprob=-1.5" in repr(Piece(1, "a", 0)._with_score(-1.5, ()))
    assert pickle.loads(pickle.dumps(piece)) == piece  # noqa: S301  # our own
    with pytest.raises(dataclasses.FrozenInstanceError):
        piece.text = "b"  # type: ignore[misc]


@pytest.mark.parametrize("kind", [Pieces, ChatReply, NumberedPieces])
def test_who_makes_them(kind: type) -> None:
    with pytest.raises(TypeError, match=r"are made by Context\."):
        kind()


def test_they_are_no_dicts(context: Context) -> None:
    completion = context.generate("a", max_tokens=1).complete()
    for each in (completion, *completion.pieces):
        with pytest.raises(TypeError, match=r"is no dict, and has no \['choices'\]: it has attributes, such as \.text"):
            each["choices"]  # type: ignore[index]


def test_servers_see_that_they_are_read_without_asyncio(context: Context) -> None:
    """Frameworks look for ``__aiter__`` to choose how to read; one that only raises would mislead them."""
    for made in (context.generate("a", max_tokens=1), context.chat(HELLO, template="chatml", max_tokens=1)):
        assert isinstance(made, Iterator)
        assert not isinstance(made, AsyncIterable)


def test_what_is_printed_says_what_to_do(context: Context, dense: Model) -> None:
    pieces = context.generate(PROMPT, max_tokens=3)
    assert repr(pieces) == "<Pieces, 0 tokens so far: loop over it, or .complete() gives the whole>"
    next(pieces)
    assert "1 tokens so far" in str(pieces)
    many = context.generate_many([PROMPT], max_tokens=1)
    assert repr(many) == "<NumberedPieces: loop over indices and pieces, or .complete() gives all texts>"
    reply = context.chat(HELLO, template="chatml", max_tokens=1)
    assert repr(reply).startswith("<ChatReply, 0 tokens so far: loop over it")
    for made in (context.agenerate(PROMPT, max_tokens=1), context.achat(HELLO, template="chatml", max_tokens=1)):
        assert repr(made).startswith(
            f"<{type(made).__name__}, 0 tokens so far: async for loops over it, or await .comp"
        )
