"""How long the program ``moebind`` takes until it answers, beside what any program of Python takes, in the same run.

    python benchmarks/startup.py [--rounds 21]

``moebind --version`` beside ``import numpy``, and ``moebind plan`` of a model of 24 GiB (its header, in a sparse file)
beside ``import moebind``: one after the other in turn, each in a process of its own. A ratio is the median of those of
the rounds. It ends with 1 if one is not below its bound.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import shapes

MOEBIND = str(Path(sys.executable).with_name("moebind"))
MODEL = "phi-3.5-moe-q4_k_m"


def seconds(command: Sequence[str]) -> float:
    """Run a command, and time it."""
    begun = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def compare(command: Sequence[str], code: str, rounds: int, bound: float) -> bool:
    """Measure a command beside a line of Python, print what was found, and tell whether it is below the bound."""
    python = [sys.executable, "-c", code]
    for each in (command, python):
        seconds(each)  # files are read, and bytecode is written
    pairs = [(seconds(command), seconds(python)) for _ in range(rounds)]
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    ours, theirs = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
    name = " ".join(Path(part).name for part in command)
    print(f"{name}: {ours:.0f} ms; {code}: {theirs:.0f} ms; ratio {ratio:.2f}, to be below {bound}")
    return ratio < bound


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How long the program moebind takes until it answers.")
    parser.add_argument("--rounds", type=int, default=21, help="pairs of processes (default 21)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        model = shapes.write(Path(folder) / f"{MODEL}.gguf", shapes.SHAPES[MODEL])
        below = [
            compare([MOEBIND, "--version"], "import numpy", rounds, 1.5),
            compare([MOEBIND, "plan", str(model)], "import moebind", rounds, 2.0),
        ]
    sys.exit(not all(below))


if __name__ == "__main__":
    main()
