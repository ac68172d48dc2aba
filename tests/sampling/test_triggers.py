"""What starts a lazy grammar: the same as in llama.cpp, in time that does not grow with the text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tiny_vocab
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from moebind import ChatPrompt, GrammarError, Model, ModelParams, Sampler, TokenDataArray, ffi, lib
from moebind._core.native import CData
from moebind.chat.grammar import grammar_sampler

#: From the trigger on, anything but this.
GRAMMAR = "root ::= [^z]*"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tiny_vocab.write(tmp_path_factory.mktemp("triggers") / "bytes.gguf", tiny_vocab.bpe("gpt-2"))
    with Model.load_from_file(path, ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        yield model


def started_in_llama_cpp(model: Model, patterns: list[str], text: str) -> int | None:
    """After how many tokens llama.cpp's grammar applies."""
    texts = [ffi.new("char[]", each.encode()) for each in patterns]
    native = lib.llama_sampler_init_grammar_lazy_patterns(
        model._usable_vocab(), GRAMMAR.encode(), b"root", texts, len(texts), ffi.NULL, 0
    )
    try:
        return applies(model, native, text)
    finally:
        lib.llama_sampler_free(native)


def applies(model: Model, native: CData, text: str) -> int | None:
    z = int(model.str_to_token("z", add_special=False)[0])
    for at, each in enumerate(model.str_to_token(text, add_special=False).tolist()):
        lib.llama_sampler_accept(native, each)
        data = ffi.new("llama_token_data[]", [(z, 1.0, 0.0)])
        lib.llama_sampler_apply(native, ffi.new("llama_token_data_array *", (data, 1, -1, False)))
        if data[0].logit == -np.inf:
            return at
    return None


def started(model: Model, patterns: list[str], text: str) -> int | None:
    other = int(model.str_to_token("b", add_special=False)[0])
    sampler: Sampler = Sampler.grammar_lazy_patterns(model, GRAMMAR, "root", patterns)
    for at, each in enumerate(model.str_to_token(text, add_special=False).tolist()):
        # Neither a question nor a copy changes where it is.
        lib.moebind_grammar_allows(sampler._open(), other)
        if at == 2:
            sampler = sampler.clone()
        sampler.accept(each)
        if not lib.moebind_grammar_waits(sampler._open()):
            return at
    return None


PARTS_OF_PATTERNS = ["a", "b", "<a>", "(<a>)", "(b)", "[ab]", "[|b]", r"[\s\S]*", "(?:a|b)", r"\|", "x?", "$", "^"]
# Repetitions, lookaheads and others that the automaton takes for more than they are, or does not know.
PARTS_OF_PATTERNS += [
    "a{2}",
    "b{0,2}",
    "[^<]*?",
    r"\s+",
    "(a+)",
    "(?!b)",
    "(?=a)",
    "(?!a|bx)",
    "(?:^|<)",
    "[[:alpha:]]",
    r"[^\]a]",
]
PARTS_OF_PATTERNS += [".", r"\x61", r"\b", r"\B", "(?=a$)", r"(a)\1"]
PARTS = st.sampled_from(PARTS_OF_PATTERNS)
PATTERNS = st.lists(st.lists(PARTS, min_size=1, max_size=4).map("".join), min_size=1, max_size=2).map("|".join)


@settings(max_examples=400)
@given(patterns=st.lists(PATTERNS, min_size=1, max_size=2), text=st.text("ab<>|x \n", max_size=12))
def test_patterns_start_it_where_llama_cpp_does(model: Model, patterns: list[str], text: str) -> None:
    try:
        at = started(model, patterns, text)
    except GrammarError:  # too many repetitions
        reject()
    assert at == started_in_llama_cpp(model, patterns, text)


@pytest.mark.parametrize("pattern", [r"[\s\S]*(<a>)|(<b>)", r"[\s\S]*?(<b>)|x", r"[\s\S]*(<b>|<a>)"])
def test_a_choice_at_the_top_of_a_pattern(model: Model, pattern: str) -> None:
    assert started(model, [pattern], "ab <b> ") == 5


@settings(max_examples=200)
@given(words=st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3), text=st.text("ab<", max_size=30))
def test_words_are_found_as_soon_as_they_are_complete(model: Model, words: list[str], text: str) -> None:
    with Sampler.grammar_lazy(model, GRAMMAR, "root", words) as sampler:
        for end in range(1, len(text) + 1):
            sampler.accept(int(model.str_to_token(text[end - 1], add_special=False)[0]))
            waits = not any(word in text[:end] for word in words)
            assert bool(lib.moebind_grammar_waits(sampler._open())) == waits
            if not waits:
                return


def test_a_word_that_begins_in_the_middle_of_a_token(model: Model) -> None:
    """Tokens are "a", "aa", "aaaa", ...: the grammar begins with the word, and reads what is left of a token."""
    tokens = {model.token_to_str(i): i for i in range(model.n_vocab)}
    with Sampler.grammar_lazy(model, 'root ::= "ab" [c]*', "root", ["ab"]) as sampler:
        sampler.accept_many([tokens["b"]] * 100)
        sampler.accept_many([tokens["aaaa"], tokens["aa"]])
        assert sampler.try_accept(tokens["b"])
        assert not sampler.try_accept(tokens["b"])
        assert sampler.try_accept(tokens["c"])


class Steps:
    """A prompt with nothing but a lazy grammar."""

    def __init__(self, words: list[str]) -> None:
        from moebind import ChatTrigger

        self.grammar, self.grammar_lazy = GRAMMAR, True
        self.triggers = tuple(ChatTrigger("word", word) for word in words)


def test_the_words_of_a_chat_are_found_in_a_reply_of_any_length(model: Model) -> None:
    """200,000 characters: as a pattern over the whole text, a word could not be looked for any more."""
    prompt: ChatPrompt = Steps(["<tool_call>", '{"type": "function",'])  # type: ignore[assignment]
    sampler = grammar_sampler(model, prompt, frozenset())
    assert sampler is not None
    tokens = np.array([int(model.str_to_token(each, add_special=False)[0]) for each in "ab<to"] * 40_000, np.int32)
    with sampler:
        sampler.accept_many(tokens)
        assert lib.moebind_grammar_waits(sampler._open())
        for each in "<tool_call>":
            assert sampler.try_accept(int(model.str_to_token(each, add_special=False)[0]))
        assert not lib.moebind_grammar_waits(sampler._open())
        assert not sampler.try_accept(int(model.str_to_token("z", add_special=False)[0]))


#: Those of Functionary, gpt-oss and Muse, one that begins with any text, and two that no automaton knows.
@pytest.mark.parametrize(
    ("pattern", "text", "trigger", "length"),
    [
        (r">>>(?!all)", ">>all", ">>>", 200_000),
        (r"<\|start\|>assistant(\s+to)", "<|start|>assistant", " to", 200_000),
        (r"^\s+to$|<t>", "a to", "<t>", 200_000),
        (r"(?:^|<s>)( to=(?!self<m>)[^<]*?<m>)", "a to=self<m>", "<s> to=x<m>", 200_000),
        (r"[\s\S]*(<a>)|(<b>)", "<ab", "<b>", 200_000),
        (r"\b(<a>)\b", "<ab", "b<a>b", 2000),
        (r"<(a|b)\1>", "<ab", "<aa>", 2000),
    ],
)
def test_a_pattern_is_found_in_a_reply_of_any_length(
    model: Model, pattern: str, text: str, trigger: str, length: int
) -> None:
    """Searching it all after each token would take std::regex more steps than it is given."""
    tokens = [int(model.str_to_token(each, add_special=False)[0]) for each in text] * (length // len(text))
    with Sampler.grammar_lazy_patterns(model, GRAMMAR, "root", [pattern]) as sampler:
        sampler.accept_many(np.array(tokens, np.int32))
        assert lib.moebind_grammar_waits(sampler._open())
        sampler.accept_many(model.str_to_token(trigger, add_special=False))
        assert not lib.moebind_grammar_waits(sampler._open())
        sampler.reset()
        assert lib.moebind_grammar_waits(sampler._open())


def test_what_was_asked_about_is_not_what_was_accepted(model: Model) -> None:
    a, b, c = (int(model.str_to_token(each, add_special=False)[0]) for each in "abc")
    with Sampler.grammar(model, 'root ::= ("a" "b" | "b" "a" | "a" "c") "c"') as sampler:
        candidates = TokenDataArray.from_logits(np.zeros(model.n_vocab, np.float32))
        assert lib.moebind_grammar_allows(sampler._open(), b)
        assert lib.moebind_grammar_allows(sampler._open(), a)
        assert not lib.moebind_grammar_allows(sampler._open(), c)
        sampler.accept(a)
        assert lib.moebind_grammar_allows(sampler._open(), b)
        with sampler.clone() as copy:
            copy.accept(c)
            assert not copy.try_accept(b)
        sampler.apply(candidates)
        assert sampler.try_accept(b)
        assert not sampler.try_accept(b)
        sampler.reset()
        assert sampler.try_accept(b)
        assert sampler.try_accept(a)
