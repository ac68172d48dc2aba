"""Engines in tests: what their texts are to be, when they are idle, and what must hold then."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import conftest
from moebind import ContextParams, Engine, Model, Sampler, lib

#: What is computed together differs by the last bits from what is computed alone, too little for text.
EXACT = conftest.EXACT.with_n_ctx(1024).with_n_seq_max(3)
PROMPTS = [[1, 7, 8], [1, 270, 271, 272, 9, 61, 62], [1], [1, 60, 61], [1, 99, 98, 97, 96], [1, 5, 5], [1, 40]]


def alone(model: Model, prompts: Sequence[Any], params: ContextParams = EXACT, **options: Any) -> list[tuple[int, ...]]:
    """The tokens that ``Context.generate`` writes after each, by itself."""
    with model.new_context(params.with_n_seq_max(1).with_n_ctx(params.n_ctx // 2)) as context:
        return [
            context.generate(prompt, reuse_prefix=False, **{"max_tokens": 8, **options}).complete().tokens
            for prompt in prompts
        ]


def never_ends(model: Model) -> Sampler:
    """Takes away all tokens that end a text."""
    return Sampler.logit_bias({token: -float("inf") for token in range(model.n_vocab) if model.is_eog_token(token)})


def endless(model: Model, *more: Sampler) -> Sampler:
    """The likeliest token that does not end the text."""
    return Sampler.chain([never_ends(model), *more, Sampler.greedy()])


def wait_until(true: Callable[[], object]) -> None:
    """Until pytest's own limit."""
    while not true():
        time.sleep(0.002)


def check(engine: Engine) -> None:
    """Wait until no request is left; check that every sequence is free, and holds what the engine thinks it does."""
    wait_until(lambda: not engine._thread.n_open)
    context, schedule = engine._context, engine._thread._steps.schedule
    with context._exclusive() as native:  # the thread waits for messages, or will find nothing to do
        memory = lib.llama_get_memory(native)
        assert not schedule.running
        assert not schedule.waiting
        assert sorted(schedule.free) == list(range(context.n_seq_max))
        for seq, left in schedule.free.items():
            assert lib.llama_memory_seq_pos_max(memory, seq) + 1 >= left.size, (seq, left)
        while schedule.evict(memory):
            pass
        for seq in schedule.free:
            assert lib.llama_memory_seq_pos_max(memory, seq) == -1
