"""Grammars that wait for a word, a pattern or a token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from spelling import END, allowed, begins, spelled
from tiny import TOKENS

from conftest import SMALL
from moebind import Batch, GrammarError, Model, Sampler, SamplerError, TokenDataArray

CALL = 'root ::= "<call>" [0-9]+ ";"'


def everything(model: Model) -> set[int]:
    return set(range(model.n_vocab))


def makes(model: Model) -> list[Sampler]:
    return [
        Sampler.grammar_lazy(model, CALL, "root", ["<call>", "<other>"]),
        Sampler.grammar_lazy_patterns(model, CALL, "root", ["<call>"]),
        Sampler.grammar_lazy_patterns(model, CALL, "root", [r"[\s\S]*?(<call>)[\s\S]*", "xyz+"]),
        Sampler.grammar_lazy_patterns(model, CALL, "root", [r"^[\s\S]*(<call>)$"]),
    ]


def test_they_wait_and_then_hold(dense: Model) -> None:
    for grammar in makes(dense):
        with grammar:
            assert allowed(grammar, dense) == everything(dense)
            assert begins(grammar, "anything é\x80 at all <cal")
            assert allowed(grammar, dense) == everything(dense)
            with grammar.clone() as waiting:
                assert begins(grammar, "l>")
                assert begins(grammar, "12")
                assert not begins(grammar, "x")
                assert not grammar.try_accept(END)
                assert begins(grammar, ";")
                assert allowed(grammar, dense) == {END}
                assert begins(waiting, "x <call>3;")
            grammar.reset()
            assert allowed(grammar, dense) == everything(dense)
            assert begins(grammar, "<call>")
            assert allowed(grammar, dense) == {each for each, piece in dense.tokens() if piece.isdigit()}


def test_a_token_starts_them(dense: Model) -> None:
    start = TOKENS.index("▁the")
    for grammar in (
        Sampler.grammar_lazy(dense, 'root ::= " the" "!"', "root", [], [start]),
        Sampler.grammar_lazy_patterns(dense, 'root ::= " the" "!"', "root", [], np.array([start])),
    ):
        with grammar:
            assert begins(grammar, "x the y")  # the same text, not the token
            assert grammar.try_accept(start)
            assert allowed(grammar, dense) == set(spelled("!"))
    # The text of a control token counts when it starts the grammar.
    with Sampler.grammar_lazy(dense, 'root ::= "<s>" "!"', "root", [], [1]) as grammar:
        assert grammar.try_accept(1)
        assert allowed(grammar, dense) == set(spelled("!"))


def test_the_grammar_begins_within_a_token(dense: Model) -> None:
    # The word begins with the token's last letters, and the token's first ones are text before it.
    the = TOKENS.index("▁the")
    with Sampler.grammar_lazy(dense, 'root ::= "he" "x"', "root", ["he"]) as grammar:
        assert grammar.try_accept(the)
        assert allowed(grammar, dense) == {each for each, piece in dense.tokens() if piece == b"x"}


def test_a_start_that_the_grammar_forbids_is_refused(dense: Model) -> None:
    the, a = TOKENS.index("▁the"), TOKENS.index("▁a")
    with Sampler.grammar_lazy(dense, 'root ::= "hm"', "root", ["h"]) as grammar:
        assert not grammar.try_accept(the)
        with pytest.raises(SamplerError, match="forbids"):
            grammar.accept(the)
        assert begins(grammar, "no problem: hm")
    # Sampling chooses something else then, and goes on waiting.
    with dense.new_context(SMALL) as context:
        context.decode(Batch.get_one([1]))
        with Sampler.chain(
            [
                Sampler.grammar_lazy(dense, 'root ::= "hm"', "root", ["h"]),
                Sampler.logit_bias({the: 1000.0, a: 900.0}),
                Sampler.greedy(),
            ]
        ) as chain:
            assert [chain.sample(context) for _ in range(3)] == [a, a, a]
            assert begins(chain, "h")
            assert not begins(chain, "x")
        # Where nothing else would do, it is an error in the end.
        only = Sampler.from_callable(lambda array: array.select(the))
        with (
            Sampler.chain([Sampler.grammar_lazy(dense, 'root ::= "hm"', "root", ["h"]), only]) as chain,
            pytest.raises(SamplerError, match="forbids"),
        ):
            chain.sample(context)


@pytest.mark.parametrize("seed", range(3))
def test_generating_with_them(dense: Model, seed: int) -> None:
    with (
        dense.new_context(SMALL) as context,
        Sampler.chain(
            [
                Sampler.grammar_lazy(dense, 'root ::= "e" [xy]{3}', "root", ["e"]),
                Sampler.logit_bias({END: -50.0}),
                Sampler.dist(seed),
            ]
        ) as chain,
    ):
        text = "".join(piece.text for piece in context.generate("a", sampler=chain))
        _, start, after = text.partition("e")
        assert start
        assert len(after) == 3
        assert set(after) <= {"x", "y"}


def test_patterns_that_take_for_ever_are_an_error(dense: Model) -> None:
    # Refused when made, or stopped when they turn out to be one of those; the state is as before.
    with Sampler.grammar_lazy_patterns(dense, CALL, "root", ["(?:a*)b(?:a*)c(?:a*)d(?:a*)<call>"]) as grammar:
        assert begins(grammar, "abacad" * 60)
    with Sampler.grammar_lazy_patterns(dense, CALL, "root", ["a*a*a*a*b"]) as grammar:
        assert begins(grammar, "a" * 5000)
    with Sampler.grammar_lazy_patterns(dense, CALL, "root", [r"a*a*a*a*b\b"]) as grammar:
        with pytest.raises(SamplerError, match="takes too long"):
            begins(grammar, "a" * 500)
        with pytest.raises(SamplerError, match="takes too long"):
            grammar.try_accept(spelled("a")[0])
        grammar.reset()
        assert begins(grammar, "aa")


def test_long_texts_do_not_overflow_the_stack(dense: Model) -> None:
    # libllama ends the process at 20,000 characters.
    patterns = [r"[\s\S]*?(<call>)[\s\S]*", r"^([\s\S]*)<call>$"]
    text = TokenDataArray.from_logits(np.zeros(dense.n_vocab))
    for pattern in patterns:
        with Sampler.grammar_lazy_patterns(dense, CALL, "root", [pattern]) as grammar:
            grammar.accept_many(spelled("x") * 400)
            grammar.apply(text)
    long = "\n".join(f"word{i}" for i in range(6000))
    with Sampler.grammar_lazy(dense, CALL, "root", [long]) as grammar:
        assert begins(grammar, long[:2000])


@pytest.mark.parametrize(
    "pattern",
    [
        "(", "[z-a]", "(?<=a)b", "(?P<n>a)", "(?i)a", "a{2,1}", "*", "(a*)*b", "(a|b)+c", "x" * 1001, "", "a*b*c*d*e*",
        "(" * 400 + "a" + ")*" * 400,
    ],
)  # fmt: skip
def test_patterns_that_are_refused(dense: Model, pattern: str) -> None:
    with pytest.raises(GrammarError, match="trigger_patterns"):
        Sampler.grammar_lazy_patterns(dense, CALL, "root", [pattern])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: Sampler.grammar_lazy(m, CALL, "root", []), GrammarError, "no trigger"),
        (lambda m: Sampler.grammar_lazy(m, CALL, "root", [""]), GrammarError, "empty"),
        (lambda m: Sampler.grammar_lazy(m, CALL, "root", "word"), TypeError, "sequence"),
        (lambda m: Sampler.grammar_lazy(m, CALL, "root", [3]), TypeError, "str"),
        (lambda m: Sampler.grammar_lazy(m, CALL, "root", ["\ud800"]), ValueError, "surrogate"),
        (lambda m: Sampler.grammar_lazy(m, CALL, "root", ["a\0"]), ValueError, "NUL"),
        (lambda m: Sampler.grammar_lazy(m, CALL, "root", ["a"] * 257), GrammarError, "257 triggers"),
        (lambda m: Sampler.grammar_lazy(m, CALL, "root", [], [-1]), ValueError, "trigger_tokens"),
        (lambda m: Sampler.grammar_lazy(m, CALL, "root", [], [10**6]), ValueError, "trigger_tokens"),
        (lambda m: Sampler.grammar_lazy(m, CALL, "root", [], [1.5]), TypeError, "trigger_tokens"),
        (lambda m: Sampler.grammar_lazy(m, "root ::= x", "root", ["a"]), GrammarError, "not defined"),
        (lambda m: Sampler.grammar_lazy_patterns(m, CALL, "root", "a"), TypeError, "sequence"),
        (lambda m: Sampler.grammar_lazy_patterns(m, CALL, "root", [3]), TypeError, "str"),
        (lambda m: Sampler.grammar_lazy_patterns(m, CALL, "root", ["a\0"]), GrammarError, "NUL"),
        (lambda m: Sampler.grammar_lazy_patterns(m, CALL, "toor", ["a"]), GrammarError, "no rule 'toor'"),
        (lambda m: Sampler.grammar_lazy_patterns(None, CALL, "root", ["a"]), TypeError, "Model"),
    ],
)
def test_bad_arguments(dense: Model, make: Callable[[Model], Sampler], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(dense)
