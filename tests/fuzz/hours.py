"""Each fuzzer for so many minutes, all at once, with new seeds each time; and a table of what they did.

    python tests/fuzz/hours.py address --minutes 60      # the build with AddressSanitizer and UBSan
    python tests/fuzz/hours.py thread --minutes 60       # with ThreadSanitizer: the fuzzer of threads
    python tests/fuzz/hours.py development --minutes 60  # PYTHONDEVMODE, faulthandler, a warning is an error

A fuzzer's last turn may end minutes after the others. What a turn printed, and how it ended, stays in a file of its own
in build/fuzzers; a turn that fails is told, and the next one begins.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUTPUT = ROOT / "build" / "fuzzers"

#: How each kind starts Python, beyond its variables.
KINDS = {
    "address": [sys.executable, str(ROOT / "tools/sanitize.py"), "address"],
    "thread": [sys.executable, str(ROOT / "tools/sanitize.py"), "thread"],
    "development": [sys.executable, "-W", "error::ResourceWarning"],
}
DEVELOPMENT = {"PYTHONDEVMODE": "1", "PYTHONFAULTHANDLER": "1"}


@dataclass(frozen=True)
class Fuzzer:
    """How one is asked for a turn of some minutes, and what it says of it."""

    #: What a turn is asked for; {seed} is filled in.
    arguments: str
    #: What it counts, and where its output has the numbers, which are added up.
    counts: str
    pattern: str
    #: With which kinds it makes sense: GCC's AddressSanitizer does not take its locks for a fork.
    kinds: tuple[str, ...] = ("address", "development")


FUZZERS = {
    "calls": Fuzzer("--calls 1000 --seed {seed}", "calls", r"seed \d+: (\d+) calls"),
    "threads": Fuzzer(
        "--seconds 240 --seed {seed}",
        "things in five threads",
        r"^(\d+) times one of",
        ("address", "thread", "development"),
    ),
    "cycles": Fuzzer("--count 20 --seed {seed}", "rounds", r"^(\d+) rounds:"),
    "gguf_mutants": Fuzzer("--count 500 --seed {seed}", "files", r"^(\d+) mutants,"),
    "gguf_architectures": Fuzzer("", "changed models", r"'[^']*': (\d+)"),
    "media": Fuzzer("--count 1000 --seed {seed}", "pictures and sounds", r"^\w+: .+: (\d+)$"),
    "forks": Fuzzer("--forks 100 --seed {seed}", "forks", r"^(\d+) forks", ("development",)),
}


@dataclass
class Done:
    """What a fuzzer has done so far."""

    amount: int = 0
    turns: int = 0
    minutes: float = 0.0
    cpu_minutes: float = 0.0
    failed: list[Path] = field(default_factory=list)


def turns(name: str, seed: int) -> Iterator[list[str]]:
    """What each turn is given, without an end."""
    if name != "gguf_architectures":
        while True:
            yield FUZZERS[name].arguments.format(seed=seed).split()
            seed += 1
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    import gguf_architectures  # a list of names, so that hours do not always end at the same letter

    chance = random.Random(seed)
    while True:
        names = list(gguf_architectures.names())
        chance.shuffle(names)
        yield from (names[first : first + 10] for first in range(0, len(names), 10))


def counted(name: str, said: str) -> int:
    """How much a fuzzer says that it did."""
    return sum(int(number) for number in re.findall(FUZZERS[name].pattern, said, re.MULTILINE))


def run(kind: str, name: str, end: float, seed: int, done: Done) -> None:
    """Turn after turn until it is time to stop."""
    began = time.monotonic()
    environment = {**os.environ, **(DEVELOPMENT if kind == "development" else {})}
    for given in turns(name, seed):
        if time.monotonic() >= end:
            break
        output = OUTPUT / kind / f"{name}-{done.turns:03}.txt"
        with output.open("w", encoding="utf-8") as file:
            command = [*KINDS[kind], str(HERE / f"{name}.py"), *given]
            child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        text = output.read_text(encoding="utf-8", errors="replace")
        done.turns += 1
        done.amount += counted(name, text)
        done.minutes = (time.monotonic() - began) / 60
        done.cpu_minutes += (used.ru_utime + used.ru_stime) / 60
        if child.returncode != 0:
            done.failed.append(output)
            print(f"{name} ended with {child.returncode}: {output}\n{text[-2000:]}", flush=True)


def table(done: dict[str, Done]) -> str:
    """Rows for docs/reliability.md."""
    rows = ["| fuzzer | how much | minutes, of a core | turns, failed |", "| --- | --- | --- | --- |"]
    for name, each in done.items():
        amount = f"{each.amount:,} {FUZZERS[name].counts}"
        rows.append(
            f"| `tests/fuzz/{name}.py` | {amount} | {each.minutes:.0f}, {each.cpu_minutes:.0f} "
            f"| {each.turns}, {len(each.failed)} |"
        )
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    """Run them; the exit status tells whether a turn failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("fuzzers", nargs="*", help=f"which of {', '.join(FUZZERS)}; all that make sense with the kind")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first turn; the next has one more")
    chosen = parser.parse_args(arguments)
    if unknown := sorted(set(chosen.fuzzers) - set(FUZZERS)):
        parser.error(f"no fuzzer is called {unknown[0]!r}: choose from {', '.join(FUZZERS)}")
    if chosen.kind != "development" and subprocess.run(KINDS[chosen.kind], check=False).returncode != 0:
        return 1  # built once, before they all want to
    (OUTPUT / chosen.kind).mkdir(parents=True, exist_ok=True)
    names = chosen.fuzzers or [name for name, each in FUZZERS.items() if chosen.kind in each.kinds]
    done = {name: Done() for name in names}
    end = time.monotonic() + 60 * chosen.minutes
    threads = [
        threading.Thread(target=run, args=(chosen.kind, name, end, chosen.seed, each)) for name, each in done.items()
    ]
    print(f"seed {chosen.seed}", flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(table(done))
    return 1 if any(each.failed for each in done.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
