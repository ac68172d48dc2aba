"""Reference cycles through native objects: what each is freed before, and that all of it is freed.

Each test is a process of its own, in which freed memory is overwritten. ``tests/fuzz/cycles.py`` makes random ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lora
import pytest
from processes import run

MakeTiny = Callable[..., Path]

START = """
import gc, weakref
import numpy as np
from moebind import lib
other = sys.argv[1]

class Bot:
    pass

def bot_with(model):
    bot = Bot()
    bot.myself, bot.model = bot, model
    return bot

before = lib.moebind_owned_alive()
model = Model.load_from_file(path, cpu)
"""
ALL_FREED = """
gc.collect()
assert lib.moebind_owned_alive() == before, lib.moebind_owned_alive() - before
"""
#: What a bot has besides its model.
HAS = {
    "a context": "bot.context = model.new_context(two)",
    "an adapter": "bot.adapter = model.lora_adapter_init(other)",
    "an adapter in use": "bot.context = model.new_context(two)\n"
    "bot.context.set_lora_adapters({model.lora_adapter_init(other): 0.5})",
    "a grammar": "bot.sampler = Sampler.chain([Sampler.grammar(model, 'root ::= \"a\"', 'root'), Sampler.greedy()])",
    "a batch": "bot.batch = moebind.BatchExt(model.new_context(two))",
    "an attached chain": "chain = Sampler.chain([Sampler.dist(1)])\n"
    "bot.context = model.new_context(two, samplers={0: chain})\nbot.chain = chain\ndel chain",
    "a context of another": "bot.context = model.new_context(two, ctx_other=model.new_context(two))",
    "threads": "bot.context = model.new_context(two)\nbot.context.attach_threadpool(moebind.ThreadPool(2))",
    "a template": "bot.text = model.apply_chat_template([{'role': 'user', 'content': '?'}], template='chatml')",
    "a pointer": "bot.pointer = model.new_context(two).native",
    "a view": "bot.context = model.new_context(two)\nbot.context.decode(Batch.get_one([1]))\n"
    "bot.logits = bot.context.get_logits()",
    "a view of an old buffer": "bot.context = model.new_context(two)\nbot.context.decode(Batch.get_one([1]))\n"
    "bot.logits = bot.context.get_logits()\nbatch = Batch(99)\nbatch.add_sequence([1] * 99, 0, logits_all=True)\n"
    "bot.context.kv_cache_clear()\nbot.context.decode(batch)\ndel batch",
    "a generation": "bot.pieces = model.new_context(two).generate('hello')\nnext(bot.pieces)",
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora.write(tmp_path_factory.mktemp("adapter") / "lora.gguf", lora.pairs(lora.WEIGHTS))


def in_process(code: str, adapter: Path, path: Path) -> None:
    run(START + code, adapter, path, MALLOC_PERTURB_="165")


@pytest.mark.parametrize("what", HAS)
def test_a_cycle_is_freed(tiny_path: MakeTiny, adapter: Path, what: str) -> None:
    in_process(f"bot = bot_with(model)\n{HAS[what]}\ndel bot, model\n{ALL_FREED}", adapter, tiny_path(n_expert=4))


@pytest.mark.parametrize("what", HAS)
def test_a_script_ends_with_it(tiny_path: MakeTiny, adapter: Path, what: str) -> None:
    """A function of the script's makes a cycle of all its variables."""
    in_process(f"bot = bot_with(model)\n{HAS[what]}\ndef function(): return bot", adapter, tiny_path(n_expert=4))


@pytest.mark.parametrize("what", HAS)
def test_finalizers_use_what_is_there(tiny_path: MakeTiny, adapter: Path, what: str) -> None:
    code = f"""
said = []
class Bot:
    def __del__(self):
        said.append(self.model.desc)
        context = getattr(self, "context", None)
        if context is not None and not hasattr(self, "chain"):
            context.kv_cache_clear()
            context.decode(Batch.get_one([1, 2]))
            said.append(context.get_logits().sum())
        for array in [value for value in vars(self).values() if isinstance(value, np.ndarray)]:
            assert np.isfinite(array).all()
        if hasattr(self, "sampler"):
            self.sampler.clone().reset()

for _ in range(2):  # in another order
    bot = bot_with(model)
    {HAS[what].replace(chr(10), chr(10) + "    ")}
    bot.same = bot_with(model)
    del bot
gc.collect()
assert len(said) >= 4
del model
{ALL_FREED}
"""
    in_process(code, adapter, tiny_path(n_expert=4))


@pytest.mark.parametrize(
    "callback",
    [
        "bot.context = model.new_context(two.with_abort_callback(lambda: bot is None))",
        "bot.context = model.new_context(two.with_eval_callback(lambda *_: bot is None))",
        "bot.sampler = Sampler.from_callable(lambda _: print(bot))",
        "bot.sampler = Sampler.chain([Sampler.from_callable(lambda _: print(bot)), Sampler.greedy()])",
        "bot.sampler = Sampler.chain([Sampler.from_callable(lambda _: print(bot))]).clone()",
        "bot.part = Sampler.chain([Sampler.from_callable(lambda _: print(bot))])[0]",
    ],
)
def test_callbacks_that_refer_to_their_object(tiny_path: MakeTiny, adapter: Path, callback: str) -> None:
    code = f"""
def make():
    bot = bot_with(model)
    {callback}
    if hasattr(bot, "context"):
        bot.context.decode(Batch.get_one([1, 2, 3]))
    return weakref.ref(bot)

reference = make()
del model
gc.collect()
assert reference() is None
{ALL_FREED}
"""
    in_process(code, adapter, tiny_path(n_expert=4))


def test_a_pointer_outlives_its_callbacks(tiny_path: MakeTiny, adapter: Path) -> None:
    """It holds native memory only; what was to be called is not."""
    code = """
from moebind import ffi
calls = []
context = model.new_context(two.with_eval_callback(lambda *_: calls.append(1)))
context.decode(Batch.get_one([1, 2, 3]))
assert calls
native = context.native
sampler = Sampler.from_callable(lambda _: calls.append(2))
pointer = sampler.native
copy = lib.llama_sampler_clone(pointer)
del context, sampler, model
gc.collect()
calls.clear()
candidates = moebind.TokenDataArray.from_logits(np.zeros(9, np.float32))
lib.llama_sampler_apply(copy, candidates._struct())
assert calls == [2]  # nobody but this one has it
lib.llama_sampler_free(copy)
for call in [
    lambda: lib.llama_sampler_apply(pointer, candidates._struct()),
    lambda: lib.llama_decode(native, lib.llama_batch_get_one(ffi.new("int32_t[]", [1]), 1)),
]:
    try:
        call()
    except ReferenceError as error:
        assert "no longer there" in str(error)
    else:
        raise AssertionError("it is called")
assert calls == [2]
del call, native, pointer
"""
    in_process(code + ALL_FREED, adapter, tiny_path(n_expert=4))


def test_what_holds_what(tiny_path: MakeTiny, adapter: Path) -> None:
    code = """
context = model.new_context(two)
context.decode(Batch.get_one([1]))
batch, logits = moebind.BatchExt(context), context.get_logits()
with_model = lib.moebind_owned_alive()
model.close()
assert context.closed
assert lib.moebind_owned_alive() == with_model
assert np.isfinite(logits).all()
del logits, context, model
batch.close()
del batch
"""
    in_process(code + ALL_FREED, adapter, tiny_path(n_expert=4))


def test_threads_collect_while_others_compute(tiny_path: MakeTiny, adapter: Path) -> None:
    code = """
one = ContextParams(n_ctx=64, n_threads=1, n_threads_batch=1)

def work():
    for _ in range(20):
        bot = bot_with(model)
        bot.adapter = model.lora_adapter_init(other)
        bot.context = model.new_context(one)
        bot.context.set_lora_adapters({bot.adapter: 0.5})
        bot.context.decode(Batch.get_one([1, 2, 3]))

threads = [threading.Thread(target=work) for _ in range(3)]
for each in threads:
    each.start()
for each in threads:
    while each.is_alive():
        gc.collect()
        each.join(0.01)
del model, each, threads
"""
    in_process(code + ALL_FREED, adapter, tiny_path(n_expert=4))


def test_a_child_frees_nothing_of_its_parents(tiny_path: MakeTiny, adapter: Path) -> None:
    """Not what a view alone holds, either: what is on a device, and threads, are the parent's."""
    code = """
context = model.new_context(two)
context.decode(Batch.get_one([1]))
logits = context.get_logits()
pool = moebind.ThreadPool(2)
context.attach_threadpool(pool)
pointer = context.native
context.close()
there = lib.moebind_owned_alive()

def child():
    global logits, pool, pointer, context, model
    logits = pool = pointer = context = model = None
    gc.collect()
    assert lib.moebind_owned_alive() == there
    with Model.load_from_file(path, cpu) as mine:
        text(mine)
    del mine
    gc.collect()
    assert lib.moebind_owned_alive() == there

in_child(child)
assert np.isfinite(logits).all()
del logits, pool, pointer, context, model
"""
    in_process(code + ALL_FREED, adapter, tiny_path(n_expert=4))
