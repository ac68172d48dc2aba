"""How long ``import moebind`` takes beyond ``import numpy``, and ``from moebind import Model``, in fresh processes.

python benchmarks/imports.py [PYTHON]      # PYTHON: of an environment with moebind installed from a wheel

The three are measured in turn; told are medians, and the median of the ratios to ``import numpy`` of the same turn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CODE = """
import time
start = time.perf_counter(); import numpy
first = time.perf_counter(); import moebind
second = time.perf_counter(); from moebind import Model
third = time.perf_counter()
print(1e3 * (first - start), 1e3 * (second - first), 1e3 * (third - first))
"""
ROUNDS = 15


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="?", default=sys.executable, help="of an environment with moebind")
    command = [parser.parse_args().python, "-I", "-c", CODE]
    turns = [
        [float(part) for part in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]
        for _ in range(ROUNDS)
    ]
    print(f"import numpy: {statistics.median(turn[0] for turn in turns):.1f} ms")
    for name, at in ("import moebind", 1), ("from moebind import Model", 2):
        times, ratios = [turn[at] for turn in turns], [turn[at] / turn[0] for turn in turns]
        print(
            f"{name}: {statistics.median(times):.1f} ms ({min(times):.1f} to {max(times):.1f}) beyond that; "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of it"
        )


if __name__ == "__main__":
    main()
