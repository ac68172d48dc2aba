"""How long the program ``moebind`` takes until it answers, beside what any program of Python takes, in the same run.

    python benchmarks/startup.py [--rounds 21]

``moebind --version`` beside ``import numpy``, and ``moebind plan`` of a model of 24 GiB (its header, in a sparse file)
beside ``import moebind``: one after the other in turn, each in a process of its own, with bytecode as ``pip`` leaves
it. A ratio is the median of those of the rounds. It ends with 1 if one is not below its bound.

``import moebind`` loads llama.cpp and numpy, and nothing of moebind's own before it is asked for. So the plan also
stands beside a process that asks for all of it, to which there is no bound. The processors' time is told besides the
clock's: a busy machine changes it less.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import shapes

MOEBIND = str(Path(sys.executable).with_name("moebind"))
MODEL = "phi-3.5-moe-q4_k_m"


EVERYTHING = "import moebind; [getattr(moebind, name) for name in moebind.__all__]"


class Times(NamedTuple):
    """Seconds of a process: by the clock, and of processors."""

    clock: float
    processor: float


def seconds(command: Sequence[str], environment: Mapping[str, str]) -> Times:
    """Run a command, and time it."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=environment)
    ended, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return Times(ended - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def compare(
    command: Sequence[str], code: str, rounds: int, environment: Mapping[str, str], bound: float | None = None
) -> bool:
    """Measure a command beside a line of Python, print what was found, and tell whether it is below the bound."""
    python = [sys.executable, "-c", code]
    for each in (command, python):
        seconds(each, environment)  # files are read, and bytecode is written
    pairs = [(seconds(command, environment), seconds(python, environment)) for _ in range(rounds)]
    ratio, of_processor = (statistics.median(a[at] / b[at] for a, b in pairs) for at in range(2))
    ours, theirs = (1e3 * statistics.median(each.clock for each in times) for times in zip(*pairs, strict=True))
    name = " ".join(Path(part).name for part in command)
    told = "" if bound is None else f", to be below {bound}"
    print(f"{name}: {ours:.0f} ms; {code}: {theirs:.0f} ms")
    print(f"  ratio {ratio:.2f}{told}; of processors' time {of_processor:.2f}")
    return bound is None or ratio < bound


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How long the program moebind takes until it answers.")
    parser.add_argument("--rounds", type=int, default=21, help="pairs of processes (default 21)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        model = shapes.write(Path(folder) / f"{MODEL}.gguf", shapes.SHAPES[MODEL])
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        plan = [MOEBIND, "plan", str(model)]
        below = [
            compare([MOEBIND, "--version"], "import numpy", rounds, environment, 1.5),
            compare(plan, "import moebind", rounds, environment, 2.0),
            compare(plan, EVERYTHING, rounds, environment),
        ]
    sys.exit(not all(below))


if __name__ == "__main__":
    main()
