"""The same things for a long time: what a process holds afterwards is what it held after the first of them.

    python tests/soak/soak.py rounds [--count 1000]     # load, context, text, states, close
    python tests/soak/soak.py threads [--minutes 30]    # four threads, with exceptions and closed objects in the middle
    python tests/soak/soak.py serve [--minutes 60]      # two models of which one is in memory, swapped at every turn

Counted are the memory, open files, threads, child processes, mapped shared memory, and files in the folder for
temporary files, after a number of rounds in which caches and the allocator's pools fill, and at the end. It ends with
1 if the memory has grown by a MiB or more, or if there is more of anything else. Models are tiny, with random weights.

Memory is what glibc's allocator has given out, and what is resident after it has returned free pages to the system.
Where threads have ended, the second says little: pages stay with their stacks and arenas, which later threads use.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tiny
from serving import ask

import moebind
from moebind import ContextParams, EvalTensor, LoadMode, Model, ModelParams, Sampler
from moebind.server import Server

MIB = 2**20
SHARED = "/dev/shm/"  # noqa: S108
#: How much more resident memory at the end is none: the allocator's pages come and go by some.
ALLOWED = MIB
MEMORY = frozenset({"allocated", "resident"})
CPU = ModelParams(n_gpu_layers=0, devices=())
SMALL = ContextParams(n_ctx=256, n_threads=1, n_threads_batch=1)
TWO = SMALL.with_n_ctx(512).with_n_seq_max(2)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class _Mallinfo2(ctypes.Structure):
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _Mallinfo2


@dataclass(frozen=True)
class Held:
    """What a process, and its children, hold."""

    #: Of this process; another's allocator cannot be asked.
    allocated: int
    resident: int
    files: int
    threads: int
    processes: int
    shared_memory: int
    temporary_files: int

    @classmethod
    def by(cls, process: psutil.Process) -> Held:
        """What it holds now."""
        allocated = 0
        if process.pid == os.getpid():
            gc.collect()
            _libc.malloc_trim(0)
            found = _libc.mallinfo2()
            allocated = found.uordblks + found.hblkhd
        return cls(
            allocated,
            process.memory_info().rss,
            process.num_fds(),
            process.num_threads(),
            len(process.children(recursive=True)),
            sum(f" {SHARED}" in line for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()),
            sum(len(names) for _, _, names in os.walk(tempfile.gettempdir())),
        )


class Record:
    """What was held after each round."""

    def __init__(self, warm_up: int, ignored: tuple[str, ...] = ()) -> None:
        self.warm_up = warm_up
        self.ignored = ignored
        self.rounds: list[Held] = []

    def add(self, held: Held) -> None:
        """Note a round, and tell every now and then."""
        self.rounds.append(held)
        n = len(self.rounds)
        if n in (1, self.warm_up) or n % max(100, self.warm_up) == 0:
            print(f"{n:6} rounds: {_told(held)}", flush=True)

    @property
    def enough(self) -> bool:
        """Whether there are rounds enough to compare."""
        return len(self.rounds) >= 3 * self.warm_up

    def leaks(self) -> list[str]:
        """What there is more of at the end than after the first rounds, and by how much."""
        if not self.enough:
            return [f"{len(self.rounds)} rounds are too few to tell: {3 * self.warm_up} at least"]
        found = []
        for name in [each.name for each in fields(Held) if each.name not in self.ignored]:
            before, after = (self._memory if name in MEMORY else self._counted)(name)
            if after - before >= (ALLOWED if name in MEMORY else 1):
                found.append(f"{name.replace('_', ' ')}: {before:g}, then {after:g}")
        return found

    def _memory(self, name: str) -> tuple[float, float]:
        """Of memory: what there is around the end of the warm-up, and at the end."""
        window = max(1, self.warm_up // 5)
        first, last = self.rounds[self.warm_up - window : self.warm_up + window], self.rounds[-2 * window :]
        before, after = (statistics.median(getattr(held, name) for held in part) for part in (first, last))
        return before, after

    def _counted(self, name: str) -> tuple[int, int]:
        """Of what is counted: the most there was in the first third, and the least in the last.

        A connection whose other end is closed is still open for a moment, in many rounds or in none, as a machine is
        fast. What is kept is there in every later round.
        """
        part = len(self.rounds) // 3
        counts = [getattr(held, name) for held in self.rounds]
        return max(counts[:part]), min(counts[-part:])


def _told(held: Held) -> str:
    memory = f"{held.allocated / MIB:.2f} MiB allocated, {held.resident / MIB:.1f} MiB resident, "
    return memory + ", ".join(f"{getattr(held, each.name)} {each.name.replace('_', ' ')}" for each in fields(Held)[2:])


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
    me = psutil.Process()
    for number in range(count):
        one_round(path, number, folder)
        record.add(Held.by(me))


# --- threads ---


class Raised(Exception):
    """What callbacks raise here."""


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
    me = psutil.Process()
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
        record.add(Held.by(me))
        if time.monotonic() >= end and record.enough:
            return


# --- serve ---


def serve(paths: list[Path], record: Record, minutes: float) -> None:
    """Ask one model, then the other, of which one is in memory; what the server's processes hold, each time."""
    end = time.monotonic() + 60 * minutes
    with Server(paths, context_params=SMALL, parallel=1, one_at_a_time=True) as server:
        assert server.pid is not None
        process = psutil.Process(server.pid)
        for turn in itertools.count():
            for model in server.models:
                body = {"model": model.name, "prompt": f"{turn}", "n_predict": 4, "ignore_eos": True}
                answer = ask(server.url, "/v1/completions", body)
                assert answer.status == 200, answer
            record.add(Held.by(process))
            if time.monotonic() >= end and record.enough:
                return


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
        record = Record(warm_up, ignored)
        start = time.monotonic()
        run(paths, record, Path(folder))
        seconds = time.monotonic() - start
        print(f"{kind}: {len(record.rounds)} rounds in {seconds:.0f} s; at the end {_told(record.rounds[-1])}")
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
    kinds.add_parser("serve").add_argument("--minutes", type=float, default=60)
    for each in kinds.choices.values():
        each.add_argument("--warm-up", type=int, default=50, help="rounds before what is held is compared (50)")
    chosen = parser.parse_args()
    if chosen.kind == "rounds":
        return soak("rounds", chosen.warm_up, (), lambda paths, record, at: rounds(paths[0], record, chosen.count, at))
    if chosen.kind == "threads":
        each = chosen.seconds
        run = lambda paths, record, _: threads(paths[0], record, chosen.minutes, each)  # noqa: E731
        return soak("threads", chosen.warm_up, ("resident",), run)
    return soak("serve", chosen.warm_up, (), lambda paths, record, _: serve(paths, record, chosen.minutes))


if __name__ == "__main__":
    sys.exit(main())
