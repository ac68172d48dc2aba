"""Texts that look like grammars, triggers and their uses, in a process of their own that has to end by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = """
import sys

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moebind import GrammarError, Model, ModelParams, Sampler, SamplerError, TokenDataArray

model = Model.load_from_file(sys.argv[1], ModelParams(n_gpu_layers=0, vocab_only=True))
pieces = st.sampled_from(
    'root x "a" "b" [a-c] [^a] . ( ) | ? * + {2} {0,3} {3,1} {1, {9999} <[5]> !<[6]> " ] # \\\\ é -'.split()
    + [" ", "\\n", "#\\r", "::= ", "\\nroot ::= "]
)
rules = st.lists(st.lists(pieces, max_size=9).map("".join), min_size=1, max_size=4).map("\\nx ::= ".join)
grammars = rules.map("root ::= {}".format) | st.text(max_size=30) | rules
patterns = st.text("ab()[]{}*+?|^$.\\\\d-,", max_size=12)
limits = settings(max_examples=int(sys.argv[2]), deadline=None, database=None, suppress_health_check=list(HealthCheck))
calls = made = 0


def use(sampler, tokens):
    global calls, made
    made += 1
    with sampler, sampler.clone() as copy:
        for each in (sampler, copy):
            for token in tokens:
                calls += 1
                try:
                    each.apply(TokenDataArray.from_logits(np.zeros(model.n_vocab)))
                    each.try_accept(token)
                except SamplerError:
                    pass
            each.reset()


tokens = st.lists(st.integers(95, 105) | st.integers(0, model.n_vocab), max_size=6)


@limits
@given(grammars, tokens)
def grammar(text, tokens):
    try:
        sampler = Sampler.grammar(model, text)
    except (GrammarError, ValueError):
        return
    use(sampler, tokens)


@limits
@given(st.lists(patterns, max_size=2), st.lists(st.text("ab", max_size=3), max_size=2), tokens)
def lazy(patterns, words, tokens):
    for make, triggers in ((Sampler.grammar_lazy_patterns, patterns), (Sampler.grammar_lazy, words)):
        try:
            sampler = make(model, 'root ::= [ab]+ "c"', "root", triggers, [97])
        except (GrammarError, ValueError):
            continue
        use(sampler, tokens)


grammar()
lazy()
model.close()
print(f"{calls} calls on {made} grammars")
"""


@pytest.mark.parametrize("examples", [400])
def test_nothing_crashes_or_hangs(tiny_path: Callable[..., Path], examples: int) -> None:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(tiny_path()), str(examples)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    calls, made = (int(word) for word in done.stdout.split() if word.isdigit())
    assert calls > examples
    assert made > examples / 4
