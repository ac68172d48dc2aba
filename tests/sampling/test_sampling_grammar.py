"""Grammars: what they forbid is never chosen, and nothing about them ends the process or does not end."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from spelling import END, allowed, begins, matches, spelled, written

from conftest import SMALL
from moebind import Batch, ClosedError, GrammarError, Model, Sampler, SamplerError, TokenDataArray, lib

YES_OR_NO = 'root ::= "yes" | "no"'


def candidates(model: Model) -> TokenDataArray:
    return TokenDataArray.from_logits(np.arange(model.n_vocab)[::-1] / 100)


# --- what a grammar lets through ---


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (YES_OR_NO, ["yes", "no"], ["", "ye", "yesno", "nope"]),
        ('root ::= [a-c]+ "!"?', ["a", "abc!"], ["", "!", "d", "a!!"]),
        ('root ::= ("a" | b){2,3}\nb ::= "bb"', ["aa", "abba", "bbbbbb"], ["a", "bb", "aaaa"]),
        ('root ::= [^"\\\\]*', ["", "é日本🦙", "a b\n"], ['a"', "\\"]),
        ('root ::= "é" | [à-ü]{2}', ["é", "âü"], ["e", "â", "Ã©"]),
        ("root ::= .", ["x", "é", "🦙"], ["", "xx"]),
        ("root ::= [^é]", ["x", "è", "🦙"], ["é"]),
        ('root ::= e e "x" e\ne ::= f\nf ::= "" | "y"', ["x", "yx", "yyxy"], ["yyyx", ""]),
        ('root ::= "\\x41\\u00e9\\U0001F999\\n\\t\\""', ['Aé🦙\n\t"'], ["A"]),
        ('# a comment\nroot ::= # one more\n  "a" (\n "b" |\n "c" )\n', ["ab", "ac"], ["a"]),
        ('root ::= "(" root ")" | "x"', ["x", "((x))"], ["(x", "x)"]),
    ],
)
def test_grammars(dense: Model, grammar: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not matches(dense, grammar, text)] == []
    assert [text for text in bad if matches(dense, grammar, text)] == []


def test_only_characters_are_text(dense: Model) -> None:
    # Overlong forms, surrogates, what is beyond the last character, and bytes that none begins with.
    for data in (b"\xc0\xaf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\x80"):
        with Sampler.grammar(dense, "root ::= [^x]*") as grammar:
            assert not begins(grammar, data)
    for character in ("\x7f", "\x80", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"):
        with Sampler.grammar(dense, "root ::= [^x]*") as grammar:
            assert begins(grammar, character)
            # Half of a character is no end.
            assert begins(grammar, character.encode()[:-1])
            assert grammar.try_accept(END) == (len(character.encode()) == 1)


def test_control_tokens_are_no_text(dense: Model) -> None:
    with Sampler.grammar(dense, 'root ::= "<s>" | [^q]*') as grammar:
        assert allowed(grammar, dense) & {0, 1} == set()
    with Sampler.grammar(dense, "root ::= <[1]> !<[70]>") as grammar:
        assert allowed(grammar, dense) == {1}
        grammar.accept(1)
        assert allowed(grammar, dense) == set(range(dense.n_vocab)) - {70, END}
    with Sampler.grammar(dense, "root ::= <s>") as grammar:
        assert allowed(grammar, dense) == {1}


def items() -> st.SearchStrategy[str]:
    """GBNF over the letters a, b and t, h, e, which longer tokens of tiny models have too."""
    atoms = st.sampled_from(['"a"', '"b"', '" the"', '"th"', "[ab]", "[^b]", "[a-e ]", ".", '""', '"ab"'])
    return st.recursive(
        atoms,
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3).map(" ".join).map("({})".format)
            | st.lists(inner, min_size=2, max_size=3).map(" | ".join).map("({})".format)
            | st.tuples(inner.filter('""'.__ne__), st.sampled_from(["?", "*", "+", "{2}", "{1,3}", "{2,}"])).map(
                "".join
            )
        ),
        max_leaves=5,
    )


@given(items(), items(), st.integers(0, 2**31))
@settings(max_examples=60)
def test_the_same_as_llama_cpp(dense: Model, first: str, second: str, seed: int) -> None:
    grammar = f'root ::= {first} rest | "b" root\nrest ::= {second}'
    random = np.random.default_rng(seed)
    # Where both agree on what text is: ASCII, and no control tokens.
    pieces = {each for each, piece in dense.tokens() if piece.isascii() and 0 not in piece and each not in {0, 1}}
    theirs = lib.llama_sampler_init_grammar(dense._usable_vocab(), grammar.encode(), b"root")
    assume(theirs)  # it takes some repetitions of what can be empty for left recursion
    with Sampler.grammar(dense, grammar) as ours:
        for _ in range(6):
            both = TokenDataArray.from_logits(np.zeros(dense.n_vocab))
            lib.llama_sampler_apply(theirs, both._struct())
            expected = {each for each in pieces if both.data["logit"][each] > -np.inf}
            found = {each for each in pieces if ours.clone().try_accept(each)}
            assert found == expected
            if not expected - {END}:
                break
            assert allowed(ours, dense) & pieces == expected
            token = int(random.choice(sorted(expected - {END})))
            ours.accept(token)
            lib.llama_sampler_accept(theirs, token)
    lib.llama_sampler_free(theirs)


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (YES_OR_NO, "yes|no"),
        ('root ::= [0-9]{1,3} ("." [0-9]{1,3}){3}', r"\d{1,3}(\.\d{1,3}){3}"),
        ('root ::= "- " item{2,4}\nitem ::= [^\\n-]{1,20} "\\n"', r"- ([^\n-]{1,20}\n){2,4}"),
        ('root ::= (" the" | " a") " " [a-z]{3,5} [.!]', r" (the|a) [a-z]{3,5}[.!]"),
        ("root ::= [à-ü日本🦙]{5}", "[à-ü日本🦙]{5}"),
    ],
)
def test_what_is_written_matches(dense: Model, grammar: str, pattern: str) -> None:
    for seed in range(10):
        text = written(dense, Sampler.grammar(dense, grammar), seed)
        assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_generated_matches(dense: Model, seed: int) -> None:
    grammar = 'root ::= "(" [^()]{0,9} ")" [.!]{1,3}'
    with (
        dense.new_context(SMALL) as context,
        Sampler.chain([Sampler.grammar(dense, grammar), Sampler.temp(2.0), Sampler.dist(seed)]) as sampler,
    ):
        pieces = list(context.generate("a", sampler=sampler))
        assert re.fullmatch(r"\([^()]{0,9}\)[.!]{1,3}", "".join(piece.text for piece in pieces))
        assert pieces[-1].stop_reason == "eog"


# --- fail closed ---


def test_what_is_forbidden_is_never_chosen(dense: Model) -> None:
    """Wherever the grammar stands, and whatever stands behind it."""

    def revive(array: TokenDataArray) -> None:
        array.data["logit"] = np.where(np.isneginf(array.data["logit"]), 50.0, -50.0)

    possible = [token for token, piece in dense.tokens() if piece in {b"y", b"n", b"ye", b"no"}]
    for before, after in (
        ([Sampler.top_k(1)], [Sampler.greedy()]),
        ([Sampler.top_p(0.01)], [Sampler.dist(1)]),
        ([Sampler.logit_bias(dict.fromkeys(possible, -np.inf))], [Sampler.greedy()]),
        ([Sampler.temp(0.0), Sampler.dist(1)], []),
        ([Sampler.greedy()], [Sampler.temp(1.0)]),
        ([], [Sampler.from_callable(revive), Sampler.greedy()]),
        ([], [Sampler.from_callable(revive), Sampler.chain([Sampler.dist(1)])]),
        ([], [Sampler.from_callable(lambda array: array.keep(array.data["id"] == END)), Sampler.greedy()]),
        ([], [Sampler.xtc(1.0, 0.0, 1, 1), Sampler.dist(1)]),
    ):
        with Sampler.chain([*before, Sampler.grammar(dense, YES_OR_NO), *after]) as chain:
            array = candidates(dense)
            with pytest.raises(SamplerError, match="grammar first|put it first"):
                chain.apply(array)
            assert array.selected_token is None or array.data["logit"][array.selected] == -np.inf
            with dense.new_context(SMALL) as context:
                context.decode(Batch.get_one([1]))
                if chain._chooses:
                    with pytest.raises(SamplerError, match="grammar first|put it first"):
                        chain.sample(context)
                    with pytest.raises(SamplerError, match="grammar first|put it first"):
                        next(context.generate("a", sampler=chain))
            # Nothing was accepted: the grammar is where it was.
            assert chain.try_accept(spelled("y")[0])


def test_first_in_the_chain_it_decides(dense: Model) -> None:
    tails: list[list[Sampler]] = [
        [Sampler.greedy()],
        [Sampler.top_k(1), Sampler.dist(1)],
        [Sampler.typical(0.5), Sampler.dist(1)],
        [Sampler.top_n_sigma(1.0), Sampler.min_p(0.1), Sampler.dist(1)],
        [Sampler.temp(0.0), Sampler.dist(1)],
        [Sampler.temp_ext(1.0, 0.5, 1.0), Sampler.adaptive_p(0.5, 0.9, 1)],
        [Sampler.mirostat_v2(1, 5.0, 0.1)],
        [Sampler.mirostat(dense, 1, 5.0, 0.1, 100)],
        [Sampler.xtc(1.0, 0.1, 1, 1), Sampler.dist(1)],
        [Sampler.chain([Sampler.penalties(64, 2.0), Sampler.dist(1)])],
    ]
    for tail in tails:
        with Sampler.chain([Sampler.grammar(dense, YES_OR_NO), *tail]) as chain:
            text = b""
            while (token := candidates(dense).with_sampler(chain).selected_token) != END:
                assert token is not None
                chain.accept(token)
                text += dense.token_to_bytes(token)
            assert text in {b"yes", b"no"}


def test_candidates_alone_fail_closed(dense: Model) -> None:
    with Sampler.grammar(dense, YES_OR_NO) as grammar:
        array = candidates(dense)
        grammar.apply(array)
        assert array.sample_token(3) in spelled("yn")
        array = candidates(dense)
        array.keep(slice(0, 5))
        with pytest.raises(SamplerError, match="forbids every candidate"):
            grammar.apply(array)
        for choose in (lambda: array.sample_token(1), array.sample_token_greedy):
            with pytest.raises(SamplerError, match="no candidate can be chosen"):
                choose()
        foreign = TokenDataArray([(-1, 9.0, 0.0), (10**6, 9.0, 0.0), (spelled("y")[0], 0.0, 0.0), (-(2**31), 9.0, 0.0)])
        assert foreign.with_sampler(grammar).sample_token_greedy() == spelled("y")[0]
        unknown = TokenDataArray([(3, np.nan, 0.0), (4, np.nan, 0.0)])
        with pytest.raises(SamplerError):
            grammar.apply(unknown)


def test_a_complete_text_can_only_end(dense: Model) -> None:
    with Sampler.grammar(dense, YES_OR_NO).with_tokens(spelled("no")) as grammar:
        assert allowed(grammar, dense) == {END}
        array = candidates(dense)
        array.keep(array.data["id"] != END)
        with pytest.raises(SamplerError, match="complete"):
            grammar.apply(array)


# --- states ---


def test_a_grammar_is_for_one_text(dense: Model) -> None:
    def write(sampler: Sampler, n: int = 9) -> str:
        return "".join(piece.text for piece in context.generate("a", sampler=sampler, max_tokens=n))

    told = re.escape("reset() it for a new one, or use a clone()")
    with dense.new_context(SMALL) as context:
        for n in (9, 1):  # whole, and cut off
            chain = Sampler.chain([Sampler.chain([Sampler.grammar(dense, 'root ::= "ab"')]), Sampler.greedy()])
            fresh = chain.clone()
            assert write(chain, n) == "ab"[:n]
            with pytest.raises(SamplerError, match=told):
                write(chain)
            with pytest.raises(SamplerError, match=told):
                write(chain.clone())
            with pytest.raises(SamplerError, match=told):
                context.generate_many(["a"], sampler=chain)
            assert write(fresh) == "ab"
            chain.reset()
            # What was accepted by hand is the beginning of the text.
            assert write(chain.with_tokens(spelled("a"))) == "b"
            chain[0].reset()
            assert write(chain) == "ab"
        # One that still waits goes on waiting.
        lazy = Sampler.chain([Sampler.grammar_lazy(dense, 'root ::= "zz"', "root", ["zz"]), Sampler.greedy()])
        write(lazy, 3)
        write(lazy, 3)


def test_a_forbidden_token_changes_nothing(dense: Model) -> None:
    with Sampler.chain([Sampler.penalties(8, 1.0, 0.0, 9.0), Sampler.grammar(dense, YES_OR_NO)]) as chain:
        for token in (spelled("x")[0], END, 0, dense.n_vocab, 2**31 - 1):
            assert chain.try_accept(token) is False
            with pytest.raises(SamplerError, match="forbid"):
                chain.accept(token)
            with pytest.raises(SamplerError, match="forbid"):
                chain.accept_many([*spelled("y"), token]) if token == 0 else chain.accept(token)
            chain.reset()
        array = candidates(dense).with_sampler(chain)
        expected = candidates(dense)
        assert array.data["logit"][spelled("y")] == expected.data["logit"][spelled("y")]  # no penalty
        assert chain.try_accept(spelled("n")[0]) is True
        assert allowed(chain[1], dense) == set(spelled("o")) | {each for each, piece in dense.tokens() if piece == b"o"}
    with Sampler.temp(1.0) as other:
        assert other.try_accept(5) is True
        with pytest.raises(ValueError, match="token"):
            other.try_accept(-1)


def test_reset_and_clone(dense: Model) -> None:
    with Sampler.grammar(dense, YES_OR_NO) as grammar:
        assert begins(grammar, "ye")
        with grammar.clone() as copy:
            grammar.reset()
            assert begins(copy, "s")
            assert copy.try_accept(END)
        assert begins(grammar, "no")
        assert grammar.name == "grammar"
        assert len(grammar) == 0
    with Sampler.chain([Sampler.chain([Sampler.grammar(dense, YES_OR_NO)]), Sampler.greedy()]) as chain:
        copy = chain.clone()
        assert begins(copy, "y")
        assert not begins(copy, "o")
        assert begins(chain[0][0], "n")
        assert not chain.try_accept(spelled("e")[0])


def test_the_parts_of_a_chain_that_moved_are_closed(dense: Model) -> None:
    inner = Sampler.chain([Sampler.grammar(dense, YES_OR_NO)])
    grammar = inner[0]
    with Sampler.chain([inner, Sampler.greedy()]) as outer:
        with pytest.raises(ClosedError, match="another chain"):
            grammar.reset()
        native = outer[0][0].native
    assert lib.llama_sampler_name(native)  # it holds the chain


def test_a_closed_model_leaves_its_grammars_usable(tiny_path: Callable[..., object]) -> None:
    from conftest import CPU

    model = Model.load_from_file(tiny_path(), CPU)  # type: ignore[arg-type]
    grammar, infill = Sampler.grammar(model, YES_OR_NO), Sampler.infill(model)
    model.close()
    assert begins(grammar, "yes")
    infill.apply(TokenDataArray([(5, 1.0, 0.0), (6, 1.0, 0.0)]))
    for make in (Sampler.infill, lambda m: Sampler.grammar(m, YES_OR_NO), lambda m: Sampler.dry(m, 1.0)):
        with pytest.raises(ClosedError):
            make(model)


# --- what cannot be a grammar ---


def rules(n: int, last: str = '"z"') -> str:
    return "\n".join([f"root ::= r{0}", *(f"r{i} ::= r{i + 1}" for i in range(n)), f"r{n} ::= {last}"])


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "no rule 'root'"),
        ('other ::= "a"', "no rule 'root'"),
        ("root ::= other", "'other' is used, but not defined"),
        ('root ::= "a', "unexpected end"),
        ('root ::= "a"\n\nroot2 = "b"', "line 3, column 7: expecting ::="),
        ('root ::= "\\q"', r"line 1, column 11: unknown escape"),
        ('root ::= ("a"', "expecting '\\)'"),
        ('root ::= "é" {x}', "line 1, column 15: expecting an int"),
        ('root ::= "a"{5,3}', "line 1, column 13: .*m > n"),
        ('root ::= "a" "b"{ 3 , # why\n 1 }', "m > n"),
        ('# ends here\rroot ::= "a"{5,3}', "m > n"),
        ('root ::= "a"{99999999999999999999999}', "more than 2000"),
        ('root ::= "a"{1,2001}', "more than 2000"),
        ('root ::= ("abc"{2000} "b"{2000} "c"?){2000}', "exceeds sane"),
        ('root ::= "' + "ab" * 5000 + '"{2000}', "too large"),
        ("root ::= [] | [^]", "column 10: an empty class"),
        ("root ::= " + "(" * 19000 + '"a"' + ")" * 19000, "nest deeper than 1000"),
        ('root ::= root "a" | "b"', "'root' begins with itself"),
        ('root ::= a root "y" | "x"\na ::= b\nb ::= ""', "'root' begins with itself"),  # libllama does not see this one
        (rules(40_000, "r0"), "begins with itself"),
        ("root ::= <[300000]>", "no token 300000"),
        ("root ::= <[99999999999999999999]>", "stoul"),
        ("root ::= <two tokens>", "invalid token"),
        ("root ::= <" + "a" * 300_000 + ">", "more than 1000 bytes"),
        ("root ::= *", "expecting preceding item"),
        (
            "\n".join([f'r{i} ::= r{i + 1} "x" | r{i + 1} "y"' for i in range(50)] + ['r50 ::= "z"', "root ::= r0"]),
            "ways",
        ),
        ('root ::= "a"' + " " * 2**20, "at most 1048576"),
    ],
)
def test_no_grammars(dense: Model, grammar: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        Sampler.grammar(dense, grammar)


def test_bad_arguments(dense: Model) -> None:
    for arguments, error in (
        ((None, YES_OR_NO), TypeError),
        ((dense, 3), TypeError),
        ((dense, b"root ::= x"), TypeError),
        ((dense, YES_OR_NO, 3), TypeError),
        ((dense, YES_OR_NO, "nothing"), GrammarError),
        ((dense, 'root ::= "\ud800"'), ValueError),
        ((dense, 'root ::= "\0"'), ValueError),
    ):
        with pytest.raises(error):
            Sampler.grammar(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= " + " ".join(['"a"?'] * 200),
        "root ::= " + " ".join(['"a"*'] * 60),
        'root ::= ("a"* "a"*)* "b"',
        'root ::= "a" root "b" | "a" root "c" | "a" root "d" | "e"',
        rules(20_000),
        "root ::= " + "(" * 900 + '"a"' + ")?" * 900,
        'root ::= "[" root "]" | "a"',
    ],
)
def test_ambiguous_and_large_grammars_end(demo: Model, grammar: str) -> None:
    """In a vocabulary with long tokens; libllama does not end on the first. It works, or says that it cannot."""
    with Sampler.grammar(demo, grammar) as sampler:
        said = ""
        for token in demo.str_to_token("a" * 40, add_special=False).tolist():
            try:
                sampler.apply(TokenDataArray.from_logits(np.zeros(demo.n_vocab)))
                if not sampler.try_accept(token):
                    break
            except SamplerError as error:
                said = str(error)
                break
        assert not said or "ambiguous" in said
        sampler.reset()
        assert not sampler.try_accept(demo.n_vocab)
