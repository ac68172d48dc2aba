"""What grammars know of a vocabulary: a trie of its texts, and masks of the tokens that may come next."""

from __future__ import annotations

import codecs
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_vocab
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run
from spelling import allowed, spelled, written

from conftest import SMALL
from moebind import GrammarError, Model, ModelParams, Sampler, SamplerError, TokenDataArray, json_schema_to_grammar, lib
from moebind._core.native import ffi

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["cat", "dog", "bird"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}},
        "n": {"type": "number"},
    },
    "required": ["name", "kind", "tags", "n"],
}


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A vocabulary of all bytes and 1,500 texts of a few characters, some of them cut off within one, or broken."""
    random = np.random.default_rng(7)
    alphabet = [*'abcde ,"\\\n0', "é", "ü", "日", "本", "🦙"]
    texts: set[bytes] = set()
    while len(texts) < 1500:
        text = "".join(random.choice(alphabet, random.integers(2, 6))).encode()
        cut = random.integers(0, 8)
        texts.add(text[:-1] if cut == 0 else text[1:] if cut == 1 else text + b"\xf0\x9f" if cut == 2 else text)
    shown = tiny_vocab.byte_characters()
    vocabulary = tiny_vocab.bpe("default")
    tokens, kinds = vocabulary["tokenizer.ggml.tokens"], vocabulary["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    more = [each for each in ("".join(shown[byte] for byte in text) for text in sorted(texts)) if each not in tokens]
    tokens += more
    kinds += [1] * len(more)
    path = tiny_vocab.write(tmp_path_factory.mktemp("rich") / "vocabulary.gguf", vocabulary)
    with Model.load_from_file(path, ModelParams(vocab_only=True)) as model:
        yield model


def counts(sampler: Sampler) -> dict[str, int]:
    """What was done for all samplers of this grammar."""
    told = ffi.new("struct moebind_grammar_counts *")
    lib.moebind_grammar_counted(sampler.native, told)
    return {name: int(getattr(told, name)) for name in ("made", "found", "visited", "bytes")}


def asked_singly(sampler: Sampler, model: Model) -> set[int]:
    """The tokens that a grammar lets through, each read from its beginning to its end."""
    return {token for token in range(model.n_vocab) if lib.moebind_grammar_allows(sampler.native, token)}


# --- a mask has what is allowed, neither more nor less ---


def rules() -> st.SearchStrategy[str]:
    """GBNF over the characters of the rich vocabulary."""
    atoms = st.sampled_from(
        [
            '"a"',
            '"é"',
            '"日本"',
            '[^"\\\\]',
            "[a-cü]",
            "[^b日]",
            ".",
            '"🦙"',
            "[à-ü🦙]",
            '"b,"',
            "<[65]>",
            "!<[66]>",
            "[^é🦙]",
        ]
    )
    return st.recursive(
        atoms,
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3).map(" ".join).map("({})".format)
            | st.lists(inner, min_size=2, max_size=3).map(" | ".join).map("({})".format)
            | st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{1,3}", "{2,}"])).map("".join)
        ),
        max_leaves=6,
    )


@given(rules(), rules(), st.integers(0, 2**31))
@settings(max_examples=40)
def test_masks_have_what_is_allowed(rich: Model, first: str, second: str, seed: int) -> None:
    """Also in the middle of a character, and for every token there is."""
    random = np.random.default_rng(seed)
    try:
        sampler = Sampler.grammar(rich, f'root ::= {first} rest | "b" root\nrest ::= {second}')
    except GrammarError:
        return  # ("a"*)* begins with itself
    with sampler:
        for _ in range(6):
            expected = asked_singly(sampler, rich)
            if not expected:
                break
            assert allowed(sampler, rich) == expected
            assert allowed(sampler, rich) == expected  # as it was kept
            text = sorted(expected - {token for token in expected if rich.is_eog_token(token)})
            if not text:
                break
            sampler.accept(int(random.choice(text)))


def test_a_place_in_the_middle_of_a_character_is_no_later_place(rich: Model) -> None:
    """Masks are kept by both; there are more places than a byte counts."""
    broken, whole = (next(token for token, piece in rich.tokens() if piece == text) for text in (b"\xc3", b"a"))
    with Sampler.grammar(rich, "root ::= .{700}") as first, Sampler.grammar(rich, "root ::= .{700}") as second:
        first.accept(broken)
        assert whole not in allowed(first, rich)
        for _ in range(690):
            assert whole in allowed(second, rich)
            second.accept(whole)


@pytest.mark.parametrize(
    "grammar",
    [
        json_schema_to_grammar(PERSON),
        json_schema_to_grammar({"type": "object"}),
        'root ::= [^"\\\\\\x00-\\x1F]{3,40} | [à-ü日本🦙]+ [^é]* | .{2} [a-zA-Z ]*',
        'root ::= "{" (" the" | "The" root | [0-9]+ "." [0-9]*)* "}"',
    ],
    ids=["object", "any", "characters", "choices"],
)
def test_the_same_as_llama_cpp_in_a_large_vocabulary(demo: Model, grammar: str) -> None:
    """For every token, as far as both agree on what text is: UTF-8, and no control tokens."""
    random = np.random.default_rng(1)
    pieces = {
        token: piece
        for token, piece in demo.tokens()
        if piece and 0 not in piece and not demo.is_control_token(token) and not demo.is_eog_token(token)
    }
    theirs = lib.llama_sampler_init_grammar(demo._usable_vocab(), grammar.encode(), b"root")
    assert theirs
    text = b""
    with Sampler.grammar(demo, grammar) as ours:
        for _ in range(12):
            array = TokenDataArray.from_logits(np.zeros(demo.n_vocab))
            lib.llama_sampler_apply(theirs, array._struct())
            fit = {token for token, piece in pieces.items() if is_text(text + piece)}
            expected = set(np.flatnonzero(array.data["logit"] > -np.inf).tolist()) & fit
            assert allowed(ours, demo) & fit == expected
            if not expected:
                break
            # Short ones, which lead everywhere, as often as all others.
            short = [token for token in expected if len(pieces[token]) == 1]
            token = int(random.choice(short if short and random.integers(2) else sorted(expected)))
            text += pieces[token]
            ours.accept(token)
            lib.llama_sampler_accept(theirs, token)
    lib.llama_sampler_free(theirs)


def is_text(data: bytes) -> bool:
    """Whether bytes are UTF-8, perhaps cut off at their end."""
    if data[-2:-1] == b"\xed" and data[-1] >= 0xA0:  # half of a surrogate, which Python waits for the end of
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def test_control_tokens_that_are_shown(rich: Model) -> None:
    end = next(token for token, piece in rich.tokens() if piece == b"<|end|>")
    other = Sampler.grammar(rich, 'root ::= "a" | "<|" [a-z]+ "|>"')
    assert end not in allowed(other, rich)
    # The only control token of this vocabulary ends texts: what ends one is never shown.
    lib.moebind_grammar_show(other.native, ffi.new("llama_token[]", [end]), 1)
    assert allowed(other, rich) == asked_singly(other, rich)
    other.close()


@pytest.mark.parametrize("visible", [False, True])
def test_hidden_tokens_are_shown_to_one_sampler_only(dense: Model, visible: bool) -> None:
    text = 'root ::= "<s>" | "<" [a-z]'
    with Sampler.grammar(dense, text) as sampler, Sampler.grammar(dense, text) as another:
        if visible:
            lib.moebind_grammar_show(sampler.native, ffi.new("llama_token[]", [1]), 1)
        assert (1 in allowed(sampler, dense)) is visible
        assert allowed(sampler, dense) == asked_singly(sampler, dense)
        assert 1 in allowed(sampler.clone(), dense) or not visible
        assert 1 not in allowed(another, dense)


# --- what it costs: counted, not timed ---


@pytest.mark.parametrize("repeated", ["*", "{0,300}"])
def test_texts_that_are_all_allowed_are_not_walked(demo: Model, repeated: str) -> None:
    with Sampler.grammar(demo, f'root ::= [^"]{repeated}') as sampler:
        n_allowed = len(allowed(sampler, demo))
        assert n_allowed > demo.n_vocab / 2
        # Each has a node of its own, or shares it with tokens of the same text.
        texts = {piece for _, piece in demo.tokens() if b'"' not in piece}
        assert 0 < counts(sampler)["visited"] < len(texts) / 4


def test_a_long_text_needs_no_more_masks(demo: Model) -> None:
    tokens = demo.str_to_token("a long text, and longer", add_special=False).tolist()
    with Sampler.grammar(demo, 'root ::= "x" | [^"]+ # long') as sampler:
        made = []
        for _ in range(20):
            for token in tokens:
                allowed(sampler, demo)
                sampler.accept(token)
            made.append(counts(sampler)["made"])
        assert made[0] == made[-1] == 2
        assert counts(sampler)["found"] == 20 * len(tokens) - 2


def test_samplers_of_a_grammar_share_what_was_found_out(dense: Model) -> None:
    grammar = 'root ::= [ab]+ "c" # shared'
    with Sampler.grammar(dense, grammar) as first:
        expected = allowed(first, dense)
        before = counts(first)
        assert before["made"] == 1
        with Sampler.grammar(dense, grammar) as second, first.clone() as third:
            for each in (second, third):
                assert allowed(each, dense) == expected
            # A text of its own all the same.
            second.accept(spelled("b")[0])
            assert third.try_accept(spelled("c")[0]) is False
        after = counts(first)
        assert after["made"] == 1
        assert after["visited"] == before["visited"]
        assert after["found"] == 2
    # Nor is anything forgotten when the last sampler goes, until four other grammars come.
    with Sampler.grammar(dense, grammar) as again:
        assert counts(again)["made"] == 1
    for i in range(4):
        Sampler.grammar(dense, f"{grammar} {i}").close()
    with Sampler.grammar(dense, grammar) as again:
        assert counts(again)["made"] == 0
        assert allowed(again, dense) == expected


def test_few_candidates_are_asked_about_singly(demo: Model) -> None:
    logits = np.zeros(demo.n_vocab)
    for text in ("a", "ab", '"', "é"):
        logits[demo.str_to_token(text, add_special=False)[0]] = 9
    with Sampler.chain([Sampler.top_k(4), Sampler.grammar(demo, 'root ::= [^"é]+ # few')]) as chain:
        array = TokenDataArray.from_logits(logits)
        chain.apply(array)
        kept = array.data["id"][array.data["logit"] > -np.inf]
        assert {demo.token_to_bytes(token) for token in kept.tolist()} == {b"a", b"ab"}
        assert counts(chain[1])["made"] == 0


def test_what_is_kept_is_bounded(demo: Model) -> None:
    """Every letter of these is a place of its own, with a mask of 6 KB: 24 MB, if all were kept."""
    n = 2000
    letters = {token for token, piece in demo.tokens() if piece and set(piece) <= set(b"xq")}
    token = demo.str_to_token("x", add_special=False)[0]
    with Sampler.grammar(demo, f"root ::= [xq]{{{n}}} [xq]{{{n}}}") as sampler:
        most, array = 0, TokenDataArray.from_logits(np.zeros(demo.n_vocab))
        for i in range(2 * n - 20):
            if i % 4 < 3:
                lib.llama_sampler_apply(sampler.native, array._struct())
            sampler.accept(token)
            most = max(most, counts(sampler)["bytes"])
        made = counts(sampler)["made"]
        assert made * demo.n_vocab / 8 > 16 * 2**20
        # One call adds one mask, and the places on its way.
        assert 8 * 2**20 < most < 17 * 2**20
        assert allowed(sampler, demo) == letters


def test_deep_texts(dense: Model) -> None:
    with Sampler.grammar(dense, 'root ::= "[" root "]" | "a"') as sampler:
        opened, closed, inner = spelled("[")[0], spelled("]")[0], spelled("a")[0]
        visited = []
        for _ in range(1500):
            before = counts(sampler)["visited"]
            assert {opened, inner} <= allowed(sampler, dense)
            visited.append(counts(sampler)["visited"] - before)
            sampler.accept(opened)
        assert visited[-1] == visited[10]
        sampler.accept(inner)
        for _ in range(1500):
            assert closed in allowed(sampler, dense)
            sampler.accept(closed)
        assert not sampler.try_accept(closed)


def test_what_failed_fails_again(demo: Model) -> None:
    """What was found out before the limit must not help the next call beyond it."""
    ambiguous = 'root ::= "a" root "b" | "a" root "c" | "a" root "d" | "e"'
    with Sampler.grammar(demo, ambiguous) as sampler:
        a = demo.str_to_token("a", add_special=False)[0]
        while True:
            try:
                sampler.accept(a)
            except SamplerError as error:
                told = str(error)
                break
        for _ in range(3):
            with pytest.raises(SamplerError) as raised:
                sampler.accept(a)
            assert str(raised.value) == told
        sampler.reset()
        assert a in allowed(sampler, demo)


# --- greedy: the likeliest token is asked about first ---


@given(st.integers(0, 2**31))
@settings(max_examples=30)
def test_greedy_chooses_what_candidates_would(rich: Model, seed: int) -> None:
    random = np.random.default_rng(seed)
    grammar = 'root ::= [ab日]{2,9} "," ([^b]* | "é" root)'
    with (
        Sampler.chain([Sampler.grammar(rich, grammar), Sampler.greedy()]) as short,
        Sampler.chain([Sampler.grammar(rich, grammar), Sampler.top_k(0), Sampler.greedy()]) as long,
    ):
        for _ in range(8):
            logits = random.integers(-3, 4, rich.n_vocab).astype(np.float32)  # many are equal
            logits[random.integers(0, rich.n_vocab, 50)] = -np.inf
            try:
                expected = long._sample_checked(logits)
            except SamplerError:  # none of the few that are allowed is left
                with pytest.raises(SamplerError, match="forbids every candidate"):
                    short._sample_checked(logits)
                continue
            assert short._sample_checked(logits) == expected
            if rich.is_eog_token(expected):
                break


def test_greedy_asks_for_a_mask_only_when_it_is_refused(dense: Model) -> None:
    logits = np.zeros(dense.n_vocab, np.float32)
    with Sampler.chain([Sampler.grammar(dense, 'root ::= [ab]+ "c" # asked'), Sampler.greedy()]) as chain:
        logits[spelled("a")] = 2
        assert chain._sample_checked(logits) == spelled("a")[0]
        assert counts(chain[0])["made"] == 0
        logits[spelled("xb")] = [3, 2.5]
        assert chain._sample_checked(logits) == spelled("b")[0]
        assert counts(chain[0])["made"] == 1
        for nothing in (-np.inf, np.nan):
            with pytest.raises(SamplerError, match="put it first"):
                chain._sample_checked(np.full(dense.n_vocab, nothing, np.float32))
        logits[:] = -np.inf
        logits[spelled("c")] = -5
        assert chain._sample_checked(logits) == spelled("c")[0]
        with pytest.raises(SamplerError, match="text is complete"):
            chain._sample_checked(logits)


def test_greedy_with_the_logits_of_another_model(dense: Model, rich: Model) -> None:
    assert dense.n_vocab < rich.n_vocab
    with Sampler.chain([Sampler.grammar(dense, 'root ::= "b"'), Sampler.greedy()]) as chain:
        logits = np.arange(rich.n_vocab, dtype=np.float32)
        likeliest = max(token for token, piece in dense.tokens() if piece == b"b")
        assert chain._sample_checked(logits) == likeliest
    with Sampler.chain([Sampler.grammar(rich, 'root ::= "b"'), Sampler.greedy()]) as chain:
        assert rich.token_to_bytes(chain._sample_checked(np.zeros(100, np.float32))) == b"b"


def test_a_greedy_chain_whose_lazy_grammar_refuses(dense: Model) -> None:
    """The token that would start the grammar with more behind it is passed over for the next."""
    the = next(token for token, piece in dense.tokens() if piece == b" the")
    lazy = Sampler.grammar_lazy(dense, 'root ::= " thx"', "root", [" th"])
    logits = np.zeros(dense.n_vocab, np.float32)
    logits[the], logits[spelled("q")] = 2, 1
    with Sampler.chain([lazy, Sampler.greedy()]) as chain:
        assert chain._sample_checked(logits) == spelled("q")[0]


# --- threads, closing, forks ---


def test_threads_share_a_grammar(dense: Model) -> None:
    grammar = 'root ::= "[" ([^"é]{1,30} ("," | "é"))+ "]"'

    def write(seed: int) -> str:
        return written(dense, Sampler.grammar(dense, grammar), seed)

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(write, range(12)))
    assert together == [write(seed) for seed in range(12)]


def test_a_model_frees_its_grammars(tmp_path: Path) -> None:
    path = tiny_vocab.write(tmp_path / "vocabulary.gguf", tiny_vocab.bpe("default"))
    gc.collect()
    alive = lib.moebind_owned_alive()
    model = Model.load_from_file(path, ModelParams(vocab_only=True))
    expected = {token for token, piece in model.tokens() if piece in {b"t", b"th", b"the"}}
    sampler, array = Sampler.grammar(model, 'root ::= "the"+'), TokenDataArray.from_logits(np.zeros(model.n_vocab))
    model.close()
    sampler.apply(array)  # it still has the vocabulary
    assert set(array.data["id"][array.data["logit"] > -np.inf].tolist()) == expected
    sampler.close()
    del model, sampler
    gc.collect()
    assert lib.moebind_owned_alive() == alive


def test_a_child_of_a_fork_has_grammars_of_its_own(tiny_path: Callable[..., Path]) -> None:
    """Though another thread of the parent was in the middle of one."""
    run(
        """
import threading
from moebind import TokenDataArray

def use(model, sampler):
    sampler.apply(TokenDataArray.from_logits([0.0] * model.n_vocab))

model = Model.load_from_file(path, cpu)
sampler = Sampler.grammar(model, 'root ::= [^"]+')
ending = threading.Event()

def keep_using():
    while not ending.is_set():
        use(model, sampler.clone())

threading.Thread(target=keep_using).start()

def child():
    assert sampler.closed
    with Model.load_from_file(path, cpu) as mine, Sampler.grammar(mine, 'root ::= [^"]+') as own:
        use(mine, own)
        assert own.try_accept(100)

try:
    for _ in range(5):
        in_child(child)
finally:
    ending.set()
use(model, sampler)
""",
        tiny_path(),
    )


def test_json_is_written_greedily(dense: Model) -> None:
    schema = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"]}
    with dense.new_context(SMALL) as context:
        texts = {
            context.generate("a", json_schema=schema).complete().text,
            context.generate(
                "a", sampler=Sampler.chain([Sampler.json_schema(dense, schema), Sampler.top_k(0), Sampler.greedy()])
            )
            .complete()
            .text,
        }
        assert len(texts) == 1
