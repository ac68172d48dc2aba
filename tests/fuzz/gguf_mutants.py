"""Malformed GGUF files against every public call that opens one.

    python tests/fuzz/gguf_mutants.py --count 20000 --seed 7

Each mutant is made from its number, so that one can be looked at alone (``--first N --count 1``). Workers open them in
processes of their own; one that dies, hangs or grows is reported with the mutant and the call. Allowed are an exception
of moebind's, ``ValueError`` or ``OSError``, and a model that works.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gguf_changes import Base, bases, mutant
from patience import answers

#: What a worker may hold beyond what it held after the first (whole) model; mutants are all smaller than this.
GROWTH_MAX = 192 * 2**20
HANG_SECONDS = 30

# --- entries: every public call that opens a file; a new one is added here ---


def _read(path: str) -> None:
    import moebind

    file = moebind.Gguf.from_file(path)
    str(file)
    for key in file:
        file[key], file.type_of(key)
    for tensor in list(file.tensors.values())[:4]:
        tensor.data()[..., :1].sum()


def _load(path: str) -> None:
    import moebind

    with moebind.Model.load_from_file(path, moebind.ModelParams(n_gpu_layers=0)) as model:
        _use_text(model)
        params = moebind.ContextParams(n_ctx=64, n_batch=16, n_ubatch=16, n_threads=1, n_threads_batch=1)
        with model.new_context(params) as context, moebind.Sampler.greedy() as sampler:
            tokens = [token for token in (1, 2, 40) if token < model.n_vocab]
            if tokens and model.has_decoder:
                context.decode(moebind.Batch.get_one(tokens))
                model.token_to_bytes(sampler.sample(context))


def _load_vocabulary(path: str) -> None:
    import moebind

    with moebind.Model.load_from_file(path, moebind.ModelParams(n_gpu_layers=0, vocab_only=True)) as model:
        _use_text(model)


def _use_text(model: object) -> None:
    tokens = model.str_to_token("the cat <s> 12\n\0é🦙")  # type: ignore[attr-defined]
    model.tokens_to_str(tokens, special=True)  # type: ignore[attr-defined]
    for name in ("desc", "meta", "token_eos", "n_head", "n_expert_used"):
        getattr(model, name)


def _quantize(path: str) -> None:
    import moebind

    moebind.quantize(path, None, moebind.Ftype.Q4_K_M, n_threads=1, dry_run=True, allow_requantize=True)


def _plan(path: str) -> None:
    import moebind

    moebind.plan(path, moebind.ModelParams(n_gpu_layers=0, devices=()), moebind.ContextParams(n_ctx=64))


def _find_end(path: str) -> None:
    """What reading a header from the Hub stands on: it has to find the end of what Gguf reads."""
    import moebind

    try:
        end = moebind.lib.moebind_gguf_header_end(os.fsencode(path), os.path.getsize(path))
    except moebind.NativeError as error:
        raise moebind.ModelLoadError(error.message) from None
    file = moebind.Gguf.from_file(path)
    if not file.data_offset - file.alignment < end <= file.data_offset:
        raise AssertionError(f"the header ends at {end}, and the data begin at {file.data_offset}")


def _identify(path: str) -> None:
    from moebind.placement.header import read_header
    from moebind.placement.saved import Identity

    assert Identity.of(read_header(path)).size >= 0


def _inspect(path: str) -> None:
    import moebind

    str(moebind.inspect(path))


ENTRIES: dict[str, Callable[[str], None]] = {
    "Gguf.from_file": _read,
    "the end of the header": _find_end,
    "Model.load_from_file": _load,
    "vocab_only": _load_vocabulary,
    "plan": _plan,
    "which model a fit is for": _identify,
    "quantize": _quantize,
    "inspect": _inspect,
}


# --- running them ---


@dataclass
class Report:
    """What a run found."""

    mutants: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def _outcome(entry: Callable[[str], None], path: str) -> str:
    """A word for what happened; one that begins with ``!`` is a finding."""
    import moebind

    try:
        entry(path)
    except (moebind.MoebindError, ValueError, OSError) as error:
        # An assertion in a computation would end the process if a thread of its own ran into it.
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        native = isinstance(error, moebind.NativeError) or isinstance(error.__cause__, moebind.NativeError)
        if native and ("_decode" in frames or "bad_alloc" in str(error)):
            return f"!{error}"
        return "assertion" if native else "refused"
    except Exception as error:
        return f"!{type(error).__name__}: {error}"
    return "works"


def _work(pipe: Connection, folder: str, demo: str | None, seed: int) -> None:
    import warnings

    import moebind

    warnings.simplefilter("ignore")
    moebind.set_log(None)
    path = f"{folder}/mutant-{os.getpid()}.gguf"
    found = bases(Path(folder), Path(demo) if demo else None)
    for base in found:
        _write(path, base, base.file.header(), base.file.data_size())
        for name, entry in ENTRIES.items():
            outcome = _outcome(entry, path)
            if outcome != "works":
                raise RuntimeError(f"{base.name}, unchanged, {name}: {outcome}")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + GROWTH_MAX
    pipe.send("ready")
    while (number := pipe.recv()) is not None:
        base, done, header, size = mutant(found, seed, number)
        _write(path, base, header, size)
        for name, entry in ENTRIES.items():
            pipe.send((name, f"{base.name}: {done}"))
            outcome = _outcome(entry, path)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > most:
                pipe.send((f"!{name} took more memory than the file explains", None))
                return
            pipe.send((outcome, None))
        pipe.send(("done", None))


def _write(path: str, base: Base, header: bytes, size: int) -> None:
    with open(path, "wb") as file:
        file.write(header)
        if base.data is not None:
            file.write((base.data + base.data[: max(size - len(base.data), 0)])[:size])
        file.truncate(len(header) + min(size, 2**31))


def run(count: int, seed: int, first: int = 0, demo: Path | None = None, hang: float = HANG_SECONDS) -> Report:
    """Open so many mutants with every entry.

    Returns
    -------
    Report
        Outcomes by entry, and a line for each crash, hang, growth or unexpected exception.
    """
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(first, first + count))
        left: int | None = next(numbers, None)
        while left is not None:
            left = _run_worker(report, numbers, left, (folder, str(demo) if demo else None, seed), hang)
    return report


def _run_worker(
    report: Report, numbers: Iterator[int], number: int, arguments: tuple[str, str | None, int], hang: float
) -> int | None:
    """Give numbers to one worker until it ends; returns the next number."""
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs, *arguments))
    worker.start()
    theirs.close()
    entry, what = "start", ""
    current: int | None = number
    try:
        if not answers(ours, worker.pid or 0, 120) or ours.recv() != "ready":
            raise RuntimeError("the worker did not start")
        while current is not None:
            ours.send(current)
            while True:
                if not answers(ours, worker.pid or 0, hang):
                    report.findings.append(f"mutant {current}, {entry}: hangs ({what})")
                    return next(numbers, None)
                said, told = ours.recv()
                if told is not None:
                    entry, what = said, told
                elif said == "done":
                    break
                else:
                    report.outcomes[f"{entry}: {said if said[0] != '!' else 'finding'}"] += 1
                    if said[0] == "!":
                        report.findings.append(f"mutant {current}, {entry}: {said[1:]} ({what})")
            report.mutants += 1
            current = next(numbers, None)
        ours.send(None)
    except (EOFError, ConnectionError):
        worker.join()
        if entry == "start":
            raise RuntimeError("the worker did not start") from None
        report.findings.append(f"mutant {current}, {entry}: the process ended with {worker.exitcode} ({what})")
        report.mutants += 1
        return next(numbers, None)
    finally:
        if worker.is_alive() and current is not None:
            worker.kill()
        worker.join()
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--demo", type=Path, help="a real model, whose header is taken too")
    arguments = parser.parse_args()
    report = run(arguments.count, arguments.seed, arguments.first, arguments.demo)
    for outcome, times in sorted(report.outcomes.items()):
        print(f"{times:8} {outcome}")
    print(f"{report.mutants} mutants, {len(report.findings)} findings")
    for finding in report.findings:
        print(f"  {finding}")
    return bool(report.findings)


if __name__ == "__main__":
    sys.exit(main())
