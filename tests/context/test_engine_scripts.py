"""Random scripts of requests that come, are read, and go away: each text is the one that it has alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import EXACT, alone, check, endless
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CPU
from moebind import Engine, Model, Pieces

N_TOKENS = 24
BLOCKS = [[3 + (i * k) % 280 for i in range(17)] for k in (5, 7, 11)]
#: They begin alike, in parts.
PROMPTS = [
    [1, *(token for part in parts for token in BLOCKS[part]), 9] for parts in ((), (0,), (0, 1), (0, 1, 2), (1,))
]
PROMPTS += [[*PROMPTS[3], 8, 7], [1, *BLOCKS[2] * 5]]

STEPS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, len(PROMPTS) - 1), st.integers(-1, 1)),
    st.tuples(st.just("read"), st.integers(0, 9), st.integers(1, 6)),
    st.tuples(st.sampled_from(["close", "drop"]), st.integers(0, 9), st.just(0)),
)


@pytest.fixture(scope="module")
def expected(tiny_path: Callable[..., Path]) -> Callable[[str], list[tuple[int, ...]]]:
    known: dict[str, list[tuple[int, ...]]] = {}

    def of(arch: str) -> list[tuple[int, ...]]:
        if arch not in known:
            with Model.load_from_file(tiny_path(arch=arch), CPU) as model:
                known[arch] = alone(model, PROMPTS, sampler=endless(model), max_tokens=N_TOKENS)
        return known[arch]

    return of


def run(engine: Engine, model: Model, script: list[tuple[str, int, int]], expected: list[tuple[int, ...]]) -> None:
    asked: list[tuple[int, Pieces]] = []
    for what, which, number in script:
        if what == "ask":
            options: dict[str, Any] = {"sampler": endless(model), "max_tokens": N_TOKENS, "priority": number}
            asked.append((which, engine.generate(PROMPTS[which], **options)))  # no other name for what is dropped
        elif asked:
            at = which % len(asked)
            if what == "read":
                for _ in range(number):
                    next(asked[at][1], None)
            elif what == "close":
                asked.pop(at)[1].close()
            else:
                del asked[at]
    for which, pieces in asked:
        assert pieces.complete().tokens == expected[which]
    asked.clear()
    check(engine)


@settings(max_examples=40, deadline=None)
@given(
    script=st.lists(STEPS, min_size=1, max_size=25),
    n_seq_max=st.integers(1, 4),
    unified=st.booleans(),
    chunk=st.integers(1, 40),
    n_ahead=st.integers(1, 8),
    arch=st.sampled_from(["llama", "mamba", "lfm2"]),
)
def test_any_script(
    tiny_path: Callable[..., Path],
    expected: Callable[[str], list[tuple[int, ...]]],
    script: list[tuple[str, int, int]],
    n_seq_max: int,
    unified: bool,
    chunk: int,
    n_ahead: int,
    arch: str,
) -> None:
    n_ctx = 256 if unified else 256 * n_seq_max
    params: Any = EXACT.with_n_seq_max(n_seq_max).with_kv_unified(unified).with_n_ctx(n_ctx)
    with Model.load_from_file(tiny_path(arch=arch), CPU) as model:
        known = expected(arch)
        with Engine(model, params, prompt_chunk=chunk, n_ahead=n_ahead) as engine:
            run(engine, model, script, known)
