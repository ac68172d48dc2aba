"""Forks at random moments, while other threads are in the middle of something; the children do the same things.

    python tests/fuzz/forks.py --forks 3000 --seed 7

Each round is a process of its own, since what happens only once in a process is what a fork meets most rarely: tables
that are made at their first use, modules that are imported then. It forks a few times, the first time as soon as its
threads run. A child that hangs says where, after a while, and ends; one that fails says why.
A round can be repeated alone (``--first N``), though its moments are its own.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures.thread  # noqa: F401  # which asyncio imports later
import faulthandler
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from patience import seconds_of

import moebind
from moebind import Batch, ClosedError, ContextParams, Engine, Model, ModelParams, Sampler, Speculative
from moebind.chat.named_templates import chatml_tools

# What drafts and what has threads are imported before: a fork while another thread takes long for an import, as on a
# busy machine, is a known limit (docs/safety.md).
HANG_SECONDS = 30
CPU = ModelParams(n_gpu_layers=0, devices=())
TEMPLATE = chatml_tools()
MESSAGES = [{"role": "user", "content": "Who are you?"}]
TOKENS = list(range(3, 60))

# --- what threads and children do: one call, or a few that belong together ---


def _small(threads: int) -> ContextParams:
    return ContextParams(n_ctx=128, n_batch=64, n_threads=threads, n_threads_batch=threads)


def _scratch(model: Model) -> str:
    """A file of this thread's."""
    return f"{model.path}-{os.getpid()}-{threading.get_native_id()}"


def _decode(model: Model, chance: random.Random) -> None:
    with model.new_context(_small(chance.choice([1, 1, 2]))) as context:
        for _ in range(3):
            context.kv_cache_clear()
            context.decode(Batch.get_one(TOKENS))


def _generate(model: Model, chance: random.Random) -> None:
    with model.new_context(_small(1)) as context:
        for _ in context.generate("hello there", max_tokens=12):
            pass


def _generate_with_callbacks(model: Model, chance: random.Random) -> None:
    recorder = moebind.RoutingRecorder()
    params = _small(1).with_abort_callback(lambda: False).with_eval_callback(recorder)
    with model.new_context(params) as context, Sampler.from_callable(lambda candidates: candidates.select(5)) as mine:
        for _ in context.generate("hello there", sampler=mine, max_tokens=6):
            pass


def _sample(model: Model, chance: random.Random) -> None:
    with model.new_context(_small(1)) as context:
        context.decode(Batch.get_one([1, 2, 3]))
        chain = Sampler.chain_simple([Sampler.top_k(20), Sampler.temp(0.8), Sampler.dist(3)])
        for _ in range(20):
            chain.sample(context)
            context.token_data_array().apply_sampler(Sampler.top_k(5))


def _grammar(model: Model, chance: random.Random) -> None:
    with model.new_context(_small(1)) as context:
        grammar = Sampler.json_schema(model, {"type": "object", "properties": {"a": {"type": "integer"}}})
        sampler = Sampler.chain_simple([grammar, Sampler.greedy()])
        for _ in context.generate("hello", sampler=sampler, max_tokens=6):
            pass


def _tokenise(model: Model, chance: random.Random) -> None:
    for _ in range(20):
        model.tokens_to_str(model.str_to_token("the quick brown fox, and what it is: ü €" * 5))


def _chat(model: Model, chance: random.Random) -> None:
    text = model.apply_chat_template(MESSAGES, template=TEMPLATE)
    model.parse_chat_response(text, template=TEMPLATE)


def _log(model: Model, chance: random.Random) -> None:
    moebind.set_log("debug")
    Model.load_from_file(model.path, CPU).close()
    moebind.set_log("warning")


def _load(model: Model, chance: random.Random) -> None:
    Model.load_from_file(model.path, CPU).close()


def _state(model: Model, chance: random.Random) -> None:
    with model.new_context(_small(1)) as context:
        context.decode(Batch.get_one(TOKENS))
        context.state_set(context.state_get())
        context.state_save_file(_scratch(model), TOKENS)


def _plan(model: Model, chance: random.Random) -> None:
    moebind.plan(model.path, CPU, _small(1))
    moebind.experts(model.path)


def _quantize(model: Model, chance: random.Random) -> None:
    moebind.quantize(model.path, _scratch(model), moebind.Ftype.Q8_0, n_threads=1, progress=False, overwrite=True)


def _devices(model: Model, chance: random.Random) -> None:
    moebind.devices()
    moebind.system_info()
    moebind.doctor()


def _speculative(model: Model, chance: random.Random) -> None:
    with (
        model.new_context(_small(1)) as context,
        model.new_context(_small(1)) as draft,
        Speculative(context, chance.choice([draft, None]), n_max=4, n_match=2) as drafts,
    ):
        for _ in context.generate("it is it is it is", speculative=drafts, max_tokens=12):
            pass
        if chance.random() < 0.5:
            draft.close()


def _engine(model: Model, chance: random.Random) -> None:
    params = _small(1).with_n_ctx(512).with_n_seq_max(2)
    with Engine(model, params, prompt_chunk=16, n_ahead=4, speculative=chance.choice([None, "ngram-simple"])) as engine:
        texts = [engine.generate([1, *TOKENS[:n]], max_tokens=12) for n in (3, 30, 3)]
        next(texts[0])
        texts[1].close()
        if chance.random() < 0.5:
            texts[2].complete()


def _asyncio(model: Model, chance: random.Random) -> None:
    async def leave(engine: Engine) -> None:
        async for _ in engine.agenerate(TOKENS, max_tokens=12):
            break

    async def main() -> None:
        async with Engine(model, _small(1).with_n_ctx(512).with_n_seq_max(2), n_ahead=4) as engine:
            chat = engine.achat(MESSAGES, template=TEMPLATE, max_tokens=12)
            tasks = [asyncio.ensure_future(work) for work in (leave(engine), chat.complete())]
            await asyncio.sleep(chance.random() / 50)
            tasks[chance.randrange(2)].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        with model.new_context(_small(1)) as context:
            await context.agenerate("hello there", max_tokens=6).complete()

    asyncio.run(main())


DOES: dict[str, Callable[[Model, random.Random], None]] = {
    name[1:]: value for name, value in list(globals().items()) if getattr(value, "__annotations__", {}).get("chance")
}

# --- a round ---


def _child(path: str, inherited: Model, use: list[str], chance: random.Random) -> None:
    try:
        inherited.new_context(_small(1))
    except ClosedError:
        pass
    else:
        raise AssertionError("an inherited model makes contexts")
    with Model.load_from_file(path, CPU) as mine:
        for name in use:
            DOES[name](mine, chance)


def _end_of(child: int) -> int:
    """Wait for a child; one that does nothing for a while hangs, and says where before it is killed."""
    worked, idle, looked = 0.0, 0.0, time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        now = time.monotonic()
        idle, looked = idle + min(now - looked, 0.1), now  # the whole machine may stand still for a while
        if seconds_of(child) > worked:  # a machine with much to do may let it wait for long
            worked, idle = seconds_of(child), 0.0
        if idle > HANG_SECONDS:
            print(f"a child hangs, {worked} s of processor time after it was made", file=sys.stderr, flush=True)
            if debugger := shutil.which("gdb"):
                subprocess.run([debugger, "-p", str(child), "-batch", "-ex", "thread apply all backtrace"], check=False)
            os.kill(child, signal.SIGUSR1)
            time.sleep(1)
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.002)


def run_round(path: str, seed: int, number: int, forks: int) -> None:
    """Fork a few times; ends the process with a word about a child that failed."""
    chance = random.Random(f"{seed}-{number}")
    logging.getLogger("moebind").addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: SIM115
    logging.getLogger("moebind").propagate = False
    stop = threading.Event()
    model = Model.load_from_file(path, CPU)

    def work(names: list[str], its: random.Random) -> None:
        while not stop.is_set():
            DOES[its.choice(names)](model, its)

    kinds = [chance.sample(sorted(DOES), chance.choice([1, 1, 3])) for _ in range(chance.choice([1, 1, 2]))]
    threads = [
        threading.Thread(target=work, args=(names, random.Random(chance.random())), daemon=True) for names in kinds
    ]
    for thread in threads:
        thread.start()
    for _ in range(forks):
        use = chance.sample(sorted(DOES), 2)
        ends_well = chance.random() < 0.3  # as a program does, and not with os._exit
        child = os.fork()
        if child == 0:
            faulthandler.register(signal.SIGUSR1)
            try:
                _child(path, model, use, chance)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            if ends_well:
                sys.exit(0)
            os._exit(0)
        status = _end_of(child)
        if status != 0:
            print(f"round {number}: threads in {kinds}, a child in {use} ended with {status}", flush=True)
            os._exit(1)
        time.sleep(chance.choice([0, 0, 0.001, 0.02]) * chance.random())
    stop.set()
    for thread in threads:
        thread.join()


def main(arguments: list[str] | None = None) -> int:
    """Run rounds until there were so many forks; the exit status tells whether all children ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forks", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first round (0)")
    parser.add_argument("--per-round", type=int, default=10, help="forks of one process (10)")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.model:
        run_round(chosen.model, chosen.seed, chosen.first, chosen.per_round)
        return 0
    import tiny

    rounds = range(chosen.first, chosen.first + -(-chosen.forks // chosen.per_round))
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        path = str(tiny.write(Path(folder) / "tiny.gguf", tiny.Shape(n_expert=4)))
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        for number in rounds:
            command = [sys.executable, "-W", "ignore", __file__, "--model", path, "--seed", str(chosen.seed)]
            command += ["--first", str(number), "--per-round", str(chosen.per_round)]
            failed += subprocess.run(command, env=environment, check=False).returncode != 0
            if sys.stdout.isatty():
                print(f"\r{number + 1 - chosen.first} of {len(rounds)} rounds, {failed} failed", end="", flush=True)
    print(f"\n{len(rounds) * chosen.per_round} forks in {len(rounds)} processes: {failed} processes failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
