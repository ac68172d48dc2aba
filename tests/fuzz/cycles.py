"""Random cycles of models and what is made from them, dropped and collected in any order, or at the end of the process.

    python tests/fuzz/cycles.py --count 200 --seed 7

Each round is a process of its own, in which freed memory is overwritten (``MALLOC_PERTURB_``). It makes objects that
refer to each other at random: as attributes, through callbacks, as arrays over native memory, natively, as a context
does to its adapters; some use what they have when they are finalized. What a round leaves to the collector must all be
freed; some rounds leave it to the end of the interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import moebind
from moebind import (
    Batch,
    BatchExt,
    Context,
    ContextParams,
    Engine,
    LoraAdapter,
    Model,
    ModelParams,
    Pieces,
    Sampler,
    Speculative,
    ThreadPool,
    TokenDataArray,
    lib,
)

CPU = ModelParams(n_gpu_layers=0, devices=())
MESSAGES = [{"role": "user", "content": "Who are you?"}]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


class Node:
    """Somebody's object: it has something of moebind's, and refers to others."""

    def __init__(self, thing: object) -> None:
        self.thing = thing
        self.others: list[object] = []

    def callback(self, *_: object) -> None:
        """What moebind calls; through it, the native side depends on everything here."""
        assert self.others is not None


class Last(Node):
    """One that uses what it has once more, while it is being collected: that must still be there."""

    def __del__(self) -> None:
        # At the very end, Python has no modules left to import from.
        expected = Exception if sys.is_finalizing() else (moebind.MoebindError, ReferenceError)
        with contextlib.suppress(expected):
            use(self.thing)


def use(thing: object) -> None:
    """Have native code read all that there is."""
    if isinstance(thing, Model):
        assert thing.desc
        assert thing.str_to_token("hello").size
    elif isinstance(thing, Context):
        thing.kv_cache_clear()
        thing.decode(Batch.get_one([1, 5, 6]))
        assert thing.get_logits().sum() < 1e9
    elif isinstance(thing, np.ndarray):
        assert np.isfinite(thing).all()
    elif isinstance(thing, Sampler):
        assert thing.name
        thing.accept(5)
        thing.clone().apply(TokenDataArray.from_logits(np.zeros(9, np.float32)))
    elif isinstance(thing, BatchExt):
        thing.clear()
    elif isinstance(thing, LoraAdapter):
        assert thing.meta
    elif isinstance(thing, Speculative):
        thing.target_context.generate([1, 5, 6], speculative=thing, max_tokens=4).complete()
    elif isinstance(thing, Engine):
        thing.generate([1, 5, 6], max_tokens=2).complete()
    elif isinstance(thing, Pieces):
        next(thing, None)


class Round:
    """One process's objects."""

    def __init__(self, chance: random.Random, model: str, adapter: str) -> None:
        self.chance, self.model_path, self.adapter_path = chance, model, adapter
        self.nodes: list[Node] = []

    def having(self, kind: type) -> list[object]:
        """The open things of a kind."""
        return [
            node.thing for node in self.nodes if isinstance(node.thing, kind) and not getattr(node.thing, "closed", 0)
        ]

    def one(self, kind: type) -> object:
        """One of them; None where there is none."""
        return self.chance.choice(self.having(kind) or [None])

    def callback(self) -> Callable[..., None]:
        """A method of any object, or a function that refers to it."""
        node = self.chance.choice(self.nodes)
        return self.chance.choice([node.callback, lambda *_: node.callback()])

    # --- what is made; None: there is nothing to make it of ---

    def make_model(self) -> object:
        return Model.load_from_file(self.model_path, CPU)

    def make_context(self) -> object:
        model = self.one(Model)
        if model is None:
            return None
        params = ContextParams(n_ctx=512, n_batch=16, n_seq_max=2, n_threads=1, n_threads_batch=1)
        if self.chance.random() < 0.5:
            called = self.callback()
            params = params.with_abort_callback(lambda: called() is not None)
        if self.chance.random() < 0.3:
            params = params.with_eval_callback(self.callback())
        chains = {}
        if self.chance.random() < 0.3:
            chains = {1: Sampler.chain([Sampler.top_k(3), Sampler.dist(1)])}
            self.nodes.append(Node(chains[1]))
        context = model.new_context(params, samplers=chains)  # type: ignore[attr-defined]
        context.decode(Batch.get_one([1, 5, 6]))
        return context

    def make_adapter(self) -> object:
        model = self.one(Model)
        return model and model.lora_adapter_init(self.adapter_path)  # type: ignore[attr-defined]

    def make_sampler(self) -> object:
        return Sampler.from_callable(self.callback())

    def make_grammar(self) -> object:
        model = self.one(Model)
        return model and Sampler.grammar(model, 'root ::= "a"*', "root")  # type: ignore[arg-type]

    def make_chain(self) -> object:
        mine = self.having(Sampler)
        chosen = self.chance.sample(mine, min(len(mine), self.chance.randrange(4)))
        try:
            return Sampler.chain([*chosen, Sampler.greedy()])  # type: ignore[list-item]
        except (moebind.ClosedError, moebind.SamplerError):  # a part, or one that is attached
            return None

    def make_part(self) -> object:
        chain = self.one(Sampler)
        return self.chance.choice(list(chain) or [None]) if chain else None  # type: ignore[call-overload]

    def make_clone(self) -> object:
        sampler = self.one(Sampler)
        return sampler and sampler.clone()  # type: ignore[attr-defined]

    def make_pool(self) -> object:
        return ThreadPool(1)

    def make_batch(self) -> object:
        context = self.one(Context)
        return context and BatchExt(context)  # type: ignore[arg-type]

    def make_view(self) -> object:
        context = self.one(Context)
        if context is None:
            return None
        context.decode(Batch.get_one([3]))  # type: ignore[attr-defined]
        return context.get_logits()  # type: ignore[attr-defined]

    def make_pointer(self) -> object:
        thing = self.chance.choice([node.thing for node in self.nodes])
        # An engine shows no pointers.
        return None if getattr(thing, "closed", True) else getattr(thing, "native", None)

    def make_reply(self) -> object:
        model = self.one(Model)
        return model and model.apply_chat_template(MESSAGES, template=TEMPLATE)  # type: ignore[attr-defined]

    def make_speculative(self) -> object:
        target, draft = self.one(Context), self.one(Context)
        if target is None:
            return None
        try:
            return Speculative(target, self.chance.choice([draft, None]), n_match=2, n_max=4)  # type: ignore[arg-type]
        except (moebind.SpeculativeError, ValueError):  # the same context twice; one that drafts already
            return None

    def make_engine(self) -> object:
        model = self.one(Model)
        if model is None:
            return None
        # Without callbacks: its thread has them, and with them all that they refer to, until it is closed.
        params = ContextParams(n_ctx=512, n_batch=16, n_seq_max=2, n_threads=1, n_threads_batch=1)
        return Engine(model, params, n_ahead=4, speculative=self.chance.choice([None, "ngram-simple"]))  # type: ignore[arg-type]

    def make_pieces(self) -> object:
        asked, most = self.chance.choice([self.one(Engine), self.one(Context)]), self.chance.choice([2, 40])
        if asked is None:
            return None
        sampler = None
        if isinstance(asked, Context):
            sampler = Sampler.chain([Sampler.from_callable(self.callback()), Sampler.greedy()])
        return asked.generate([1, 5, 6], sampler=sampler, max_tokens=most)  # type: ignore[attr-defined]

    # --- what is done with it ---

    def use(self) -> None:
        """Have a context hold something else natively, and compute."""
        context, adapter, pool, sampler = (self.one(each) for each in (Context, LoraAdapter, ThreadPool, Sampler))
        if context is None:
            return
        assert isinstance(context, Context)
        if self.chance.random() < 0.3:
            # A larger batch of outputs: arrays keep the old buffer.
            batch = Batch(4)
            batch.add_sequence([2, 3, 4], 0, logits_all=True)
            context.kv_cache_clear()
            context.decode(batch)
        try:
            if isinstance(adapter, LoraAdapter):
                context.set_lora_adapters({adapter: 0.5})
            if isinstance(pool, ThreadPool):
                context.attach_threadpool(pool)
            if isinstance(sampler, Sampler):
                if self.chance.random() < 0.3:
                    context.set_sampler(1, sampler)
                else:
                    sampler.sample(context)
        except (moebind.MoebindError, IndexError):
            pass  # of another model; filters only; used by another one; a last computation without outputs
        context.kv_cache_clear()
        context.decode(Batch.get_one([1, 5, 6]))

    def step(self) -> None:
        """One random thing."""
        chance = self.chance
        what = chance.random()
        if what < 0.55 or not self.nodes:
            made = getattr(self, chance.choice(MAKERS))() if self.nodes else self.make_model()
            if made is not None:
                self.nodes.append(chance.choice([Node, Node, Last])(made))
        elif what < 0.65:
            self.use()
        elif what < 0.7:
            close = getattr(chance.choice(self.nodes).thing, "close", None)
            if close is not None:
                close()
        elif what < 0.85:
            del self.nodes[chance.randrange(len(self.nodes))]
        if self.nodes:
            node, other = chance.choice(self.nodes), chance.choice(self.nodes)
            node.others.append(chance.choice([other, other.thing, node]))
        if chance.random() < 0.1:
            gc.collect(chance.randrange(3))


MAKERS = sorted(name for name in vars(Round) if name.startswith("make_"))


def run_round(seed: int, number: int, model: str, adapter: str) -> None:
    """Make objects, and drop them."""
    chance = random.Random(f"{seed}-{number}")
    before = lib.moebind_owned_alive()
    made = Round(chance, model, adapter)
    for _ in range(chance.choice([20, 60])):
        made.step()
    watched = [weakref.ref(node) for node in made.nodes]
    ending = chance.randrange(4)
    if ending == 0:
        globals()["kept"] = made  # until the modules go
        globals()["function"] = lambda: made
        return
    if ending == 1:
        made.nodes.append(Node(made))
        made.nodes[-1].others.append(made.nodes[-1])
        del made  # whenever the collector comes
        return
    if ending == 2:
        thread = threading.Thread(target=gc.collect)
        del made
        thread.start()
        thread.join()
    else:
        del made
    gc.collect()
    for each in threading.enumerate():  # those of engines, which nothing refers to any more, are just ending
        if each.name == "moebind engine":
            each.join(60)
    gc.collect()
    assert not any(reference() for reference in watched), "some objects cannot be collected"
    assert lib.moebind_owned_alive() == before, f"{lib.moebind_owned_alive() - before} natives are left"


def main(arguments: list[str] | None = None) -> int:
    """Run rounds; the exit status tells whether all of them ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="how many rounds (100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first round (0)")
    parser.add_argument(
        "--without", nargs="*", default=[], help="what is not made: pieces, say; a round found without it"
    )
    parser.add_argument("--files", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.files:
        MAKERS[:] = [name for name in MAKERS if name.removeprefix("make_") not in chosen.without]
        run_round(chosen.seed, chosen.first, *chosen.files)
        return 0
    import lora
    import tiny

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        model = tiny.write(Path(folder) / "tiny.gguf", lora.SHAPE)
        adapter = lora.write(Path(folder) / "lora.gguf", lora.pairs(lora.WEIGHTS))
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "MALLOC_PERTURB_": "165"}
        for number in range(chosen.first, chosen.first + chosen.count):
            command = [sys.executable, "-W", "ignore", "-X", "faulthandler", __file__, "--seed", str(chosen.seed)]
            command += ["--first", str(number), "--files", str(model), str(adapter), "--without", *chosen.without]
            done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
            if done.returncode != 0 or done.stderr:
                failed += 1
                print(f"round {number} ended with {done.returncode}: {done.stderr}", flush=True)
    print(f"{chosen.count} rounds: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
