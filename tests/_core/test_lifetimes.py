"""Processes that end in the middle of something, and that do the same thing for a long time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from held import make_room_for_names
from processes import run

from conftest import CPU, SMALL
from moebind import Batch, Model, Sampler

MakeTiny = Callable[..., Path]


@pytest.mark.parametrize(
    "callbacks", ["", ".with_abort_callback(lambda: False)", ".with_eval_callback(lambda *_: True)"]
)
def test_an_interpreter_ends_while_threads_compute(tiny_path: MakeTiny, callbacks: str) -> None:
    run(
        f"""
model = Model.load_from_file(path, cpu)
one = ContextParams(n_ctx=512, n_threads=1, n_threads_batch=1){callbacks}
started = threading.Barrier(3)

def work():
    context = model.new_context(one)
    started.wait()
    while True:
        context.kv_cache_clear()
        context.decode(Batch.get_one([5] * 400))
        for piece in context.generate("hello", max_tokens=20):
            pass

for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
started.wait()
threading.Event().wait(0.2)
""",
        tiny_path(n_expert=4),
    )


def test_an_interpreter_ends_with_everything_open(tiny_path: MakeTiny) -> None:
    run(
        """
model = Model.load_from_file(path, cpu)
context = model.new_context(two)
pieces = context.generate("hello", max_tokens=9, sampler=Sampler.chain_simple([Sampler.top_k(3), Sampler.dist(1)]))
next(pieces)
sys.modules["keep"] = [pieces, context.get_logits(), model]
""",
        tiny_path(n_expert=4),
    )


def test_two_hundred_rounds_do_not_grow(tiny_path: MakeTiny) -> None:
    process = psutil.Process()
    path = tiny_path(n_expert=4)
    sizes = []
    make_room_for_names()
    for number in range(200):
        with Model.load_from_file(path, CPU) as model, model.new_context(SMALL) as context:
            sampler = Sampler.chain_simple([Sampler.penalties(16), Sampler.top_k(5), Sampler.dist(number)])
            for _ in context.generate("hello there", max_tokens=4, sampler=sampler):
                pass
            context.decode(Batch.get_one([1, 2, 3]))
            context.get_logits_ith(-1)
            context.memory_breakdown()
        sizes.append(process.memory_info().rss)
    # The first rounds fill what is kept for later ones: the allocator's pools, caches of regular expressions.
    assert sizes[-1] - sizes[50] < 2**20
