"""The same things for a long time: what a process holds afterwards is what it held after the first of them.

    python tests/soak/soak.py rounds [--count 1000]     # load, context, text, states, close
    python tests/soak/soak.py threads [--minutes 30]    # four threads, with exceptions and closed objects in the middle
    python tests/soak/soak.py engine [--minutes 30]     # engines, with readers in threads and coroutines that go away
    python tests/soak/soak.py serve [--minutes 60]      # six clients of two models, of which one is in memory
    python tests/soak/soak.py serve --kept              # both are: the processes of the models stay

Counted are the memory, open files, threads, child processes, mapped shared memory, and files in the folder for
temporary files, after a number of rounds in which caches and the allocator's pools fill, and at the end. It ends with
1 if the memory has grown by a MiB or more, or if there is more of anything else. Models are tiny, with random weights.
Of a server, each process is counted by itself; one that a swap has started, when it has answered as many requests as
the one that it is compared with.

Memory is what glibc's allocator has given out, and what is resident after it has returned free pages to the system.
Where threads have ended, the second says little: pages stay with their stacks and arenas, which later threads use.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import engine_clients
import engines
import server_clients
import tiny
from engine_clients import SCHEMA, Raised
from held import Held, Record, make_room_for_names

import moebind
from moebind import ContextParams, Engine, EvalTensor, LoadMode, Model, ModelParams, Sampler
from moebind.server import Server

CPU = ModelParams(n_gpu_layers=0, devices=())
SMALL = ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)
TWO = SMALL.with_n_ctx(512).with_n_seq_max(2)
FOUR = SMALL.with_n_ctx(1024).with_n_seq_max(4)


def mine() -> dict[str, Held]:
    """What this process holds."""
    return {"": Held.by(psutil.Process())}


# --- rounds ---


def one_round(path: Path, number: int, folder: Path) -> None:
    """Load, compute in several ways, save and load states, close; some things are left to the collector."""
    chance = random.Random(number)
    mode = chance.choice([LoadMode.MMAP, LoadMode.NONE])
    params = CPU.with_load_mode(mode)
    model = Model.load_from_file(path, params.with_cpu_moe_all() if chance.random() < 0.3 else params)
    context = model.new_context(TWO.with_embeddings(chance.random() < 0.2))
    tokens = model.str_to_token("hello there")
    sampler = Sampler.chain_simple([Sampler.penalties(16), Sampler.top_k(5), Sampler.dist(number)])
    list(context.generate("hello there", max_tokens=4, sampler=sampler))
    context.generate("a", max_tokens=8, json_schema=SCHEMA, temperature=0.5, seed=number).complete()
    context.generate_many(["one", "two", "three"], max_tokens=3).complete()
    pieces = context.generate("left in the middle", max_tokens=9)
    next(pieces)
    saved = context.state_seq_get(0)
    context.kv_cache_clear()
    context.state_seq_set(saved, 1)
    file = folder / "state.bin"
    context.state_save_file(file, tokens)
    context.state_load_file(file)
    file.unlink()
    context.memory_breakdown()
    for asked in (lambda: model.new_context(SMALL.with_n_seq_max(10**6)), lambda: Model.load_from_file(folder, CPU)):
        try:
            asked()
        except (moebind.MoebindError, ValueError, OSError):
            continue
        raise AssertionError("what cannot work does")
    if chance.random() < 0.7:
        context.close()
        model.close()


def rounds(path: Path, record: Record, count: int, folder: Path) -> None:
    """Do all rounds in this process."""
    for number in range(count):
        one_round(path, number, folder)
        record.add(mine())
    record.settle(mine)


# --- threads ---


def work(model: Model, seed: int, until: float) -> None:
    """One thread: contexts come and go; some calls are aborted, raise, or find their object closed."""
    chance = random.Random(seed)

    def may_abort() -> bool:
        if chance.random() < 0.01:
            raise Raised
        return chance.random() < 0.01

    def watch(tensor: EvalTensor, asked: bool) -> bool:
        if chance.random() < 0.002:
            raise Raised
        return True

    while time.monotonic() < until:
        params = chance.choice([SMALL, TWO])
        kind = chance.randrange(4)
        if kind == 1:
            params = params.with_abort_callback(may_abort)
        elif kind == 2:
            params = params.with_eval_callback(watch)
        context = model.new_context(params)
        closing = threading.Timer(chance.random() * 0.05, context.close) if chance.random() < 0.3 else None
        if closing is not None:
            closing.start()
        try:
            for _ in range(3):
                for piece in context.generate("hello there", max_tokens=12, temperature=1.0, seed=seed):
                    if chance.random() < 0.03:
                        break
                    assert piece.token >= 0
                context.state_seq_get(0)
        except (Raised, moebind.ClosedError, moebind.DecodeError, moebind.StateError):
            pass
        finally:
            if closing is not None:
                closing.cancel()
                closing.join()
            if chance.random() < 0.5:
                context.close()


def threads(path: Path, record: Record, minutes: float, seconds: float) -> None:
    """Four threads for a while, again and again; what is held is looked at when they have ended."""
    end = time.monotonic() + 60 * minutes
    for turn in itertools.count():
        with Model.load_from_file(path, CPU) as model:
            until = time.monotonic() + seconds
            failed: list[BaseException] = []

            def guarded(
                seed: int, model: Model = model, until: float = until, failed: list[BaseException] = failed
            ) -> None:
                try:
                    work(model, seed, until)
                except BaseException as error:  # told below
                    failed.append(error)

            workers = [threading.Thread(target=guarded, args=(4 * turn + number,)) for number in range(4)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            if failed:
                raise failed[0]
        record.add(mine())
        if time.monotonic() >= end and record.enough:
            break
    record.settle(mine)


# --- engine ---


def left() -> dict[str, Held]:
    """What this process holds once the collector has taken what nobody refers to: at times it comes seconds later.

    The threads of engines among that end a moment after. One engine stays.
    """
    gc.collect()
    until = time.monotonic() + Record.patience
    while [each.name for each in threading.enumerate()].count("moebind engine") > 1 and time.monotonic() < until:
        time.sleep(0.001)
    return mine()


def engine(path: Path, record: Record, minutes: float) -> None:
    """Ask one engine that stays, and in between others that do not; after each round nothing is left of a request."""
    end = time.monotonic() + 60 * minutes
    with Model.load_from_file(path, CPU) as model, Engine(model, FOUR, prompt_chunk=16, n_ahead=8) as kept:
        for turn in itertools.count():
            chance = random.Random(turn)
            engine_clients.at_once(kept, chance)
            engine_clients.short_lived(path, model, FOUR, chance)
            engines.check(kept)
            record.add(left())
            if time.monotonic() >= end and record.enough:
                break
        record.settle(left)


# --- serve ---


def serve(paths: list[Path], record: Record, minutes: float, *, kept: bool) -> None:
    """Ask one model, then the other, of which one is in memory, or both at once; from several clients at once."""
    end = time.monotonic() + 60 * minutes
    # With an arena for each thread, as glibc has it, there are for hours some that were never as full before.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    # Without the cache of prompts, which is to grow until it is as large as it may be.
    extra = ["--cache-ram", "0"]
    with Server(paths, context_params=SMALL, parallel=2, one_at_a_time=not kept, extra=extra) as server:
        names = [model.name for model in server.models]
        turns = [names] if kept else [[name] for name in names]

        def one(turn: int) -> dict[str, Held]:
            held: dict[str, Held] = {}
            for asked in turns:
                server_clients.at_once(server.url, asked, seed=turn)
                held |= server_clients.look_at(server)
            assert set(held) == {"keeper", "server", *names}, held
            return held

        for turn in itertools.count():
            record.add(one(turn))
            if time.monotonic() >= end and record.enough:
                break
        # Those who are not in memory have to be asked to be looked at.
        record.settle(lambda: server_clients.look_at(server) if kept else one(0))


def soak(kind: str, warm_up: int, ignored: tuple[str, ...], run: Callable[[list[Path], Record, Path], None]) -> int:
    """Make models, run, and tell; the exit status."""
    with tempfile.TemporaryDirectory(prefix="moebind-soak-") as folder:
        models = Path(folder, "models")
        tempfile.tempdir = str(Path(folder, "tmp"))
        os.environ["TMPDIR"] = tempfile.tempdir
        os.mkdir(tempfile.tempdir)
        models.mkdir()
        paths = [models / f"{name}.gguf" for name in "ab"]
        for seed, path in enumerate(paths):
            tiny.write(path, tiny.Shape(n_expert=4, seed=seed))
        make_room_for_names()
        # llama-server answers in a pool of threads, which has more of them for a while where several ask at once.
        record = Record(warm_up, ignored, {"threads": server_clients.N_CLIENTS} if kind == "serve" else {})
        start = time.monotonic()
        run(paths, record, Path(folder))
        seconds = time.monotonic() - start
        print(f"{kind}: {len(record.rounds)} rounds in {seconds:.0f} s; at the end {record}")
        found = record.leaks()
        print(*(f"more at the end: {each}" for each in found), sep="\n", end="\n" if found else "")
        return 1 if found else 0


def main() -> int:
    """Run one kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("rounds").add_argument("--count", type=int, default=1000)
    threaded = kinds.add_parser("threads")
    threaded.add_argument("--minutes", type=float, default=30)
    threaded.add_argument("--seconds", type=float, default=2, help="how long each four threads run (2)")
    kinds.add_parser("engine").add_argument("--minutes", type=float, default=30)
    served = kinds.add_parser("serve")
    served.add_argument("--minutes", type=float, default=60)
    served.add_argument("--kept", action="store_true", help="both models stay in memory")
    for each in kinds.choices.values():
        each.add_argument("--warm-up", type=int, default=50, help="rounds before what is held is compared (50)")
    chosen = parser.parse_args()
    ignored, run = {
        "rounds": ((), lambda paths, record, at: rounds(paths[0], record, chosen.count, at)),
        "threads": (("resident",), lambda paths, record, _: threads(paths[0], record, chosen.minutes, chosen.seconds)),
        "engine": (("resident",), lambda paths, record, _: engine(paths[0], record, chosen.minutes)),
        "serve": ((), lambda paths, record, _: serve(paths, record, chosen.minutes, kept=chosen.kept)),
    }[chosen.kind]
    return soak(chosen.kind, chosen.warm_up, ignored, run)


if __name__ == "__main__":
    sys.exit(main())
