"""Processes that fork, that end in the middle of something, and that do the same thing for a long time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from conftest import CPU, SMALL
from moebind import Batch, Model, Sampler

MakeTiny = Callable[..., Path]

HEAD = """
import os, sys, threading
import moebind
from moebind import Batch, ClosedError, ContextParams, Model, ModelParams, MoebindError, Sampler
path = sys.argv[1]
cpu = ModelParams(n_gpu_layers=0, devices=())
two = ContextParams(n_ctx=128, n_threads=2, n_threads_batch=2)

def text(model):
    with model.new_context(two) as context:
        return [piece.token for piece in context.generate("hello there", max_tokens=8)]

def in_child(function):
    child = os.fork()
    if child == 0:
        function()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def run(code: str, *arguments: object, **environment: str) -> str:
    """What a process prints; it must end by itself, well and in silence."""
    command = [sys.executable, "-W", "ignore", "-c", HEAD + code, *map(str, arguments)]
    variables = {**os.environ, "OMP_WAIT_POLICY": "passive", **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90, env=variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_child_computes_with_several_threads_after_its_parent_did(tiny_path: MakeTiny) -> None:
    run(
        """
model = Model.load_from_file(path, cpu)
expected = text(model)

def child():
    with Model.load_from_file(path, cpu) as mine:
        assert text(mine) == expected

in_child(child)
assert text(model) == expected
""",
        tiny_path(n_expert=4),
    )


def test_what_the_parent_made_is_closed_in_a_child(tiny_path: MakeTiny) -> None:
    said = run(
        """
model = Model.load_from_file(path, cpu)
context = model.new_context(two)
context.decode(Batch.get_one([1, 2, 3]))
view = context.get_logits_ith(-1)
chain = Sampler.chain_simple([Sampler.top_k(3), Sampler.greedy()])
kept = view.copy()

def child():
    for use in [lambda: model.size, lambda: model.str_to_token("a"), lambda: context.decode(Batch.get_one([1])),
                lambda: chain.sample(context), lambda: chain[0].name, lambda: model.new_context(two)]:
        try:
            use()
        except ClosedError as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError("it works")
    assert (view == kept).all()
    for each in (chain, context, model):
        assert each.closed
        each.close()
    print("child", flush=True)

in_child(child)
context.decode(Batch.get_one([4]))
print(chain.sample(context) == int(context.get_logits_ith(-1).argmax()))
""",
        tiny_path(n_expert=4),
    )
    assert said == "child\nTrue\n"


def test_a_child_leaves_its_parents_device_alone(tiny_path: MakeTiny) -> None:
    run(
        """
from moebind.placement.loopback import worker_pids
from moebind import rpc
with moebind.loopback_device() as device:
    model = Model.load_from_file(path, ModelParams(devices=(device,)))
    context = model.new_context(two)
    context.decode(Batch.get_one([1, 2, 3]))
    before = context.get_logits_ith(-1).copy()
    [endpoint] = rpc._endpoints

    def child():
        assert device.name not in [each.name for each in moebind.devices()]
        try:
            moebind.add_rpc_server(endpoint)
        except MoebindError as error:
            assert "forked" in str(error)
        else:
            raise AssertionError("it works")
        model.close()

    in_child(child)
    context.kv_cache_clear()
    context.decode(Batch.get_one([1, 2, 3]))
    assert (context.get_logits_ith(-1) == before).all()
    os.kill(worker_pids[device.name], 0)
""",
        tiny_path(n_expert=4),
    )


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
