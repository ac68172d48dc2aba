"""How long ``import moebind`` takes beyond ``import numpy``, in fresh processes.

python benchmarks/imports.py [PYTHON]      # PYTHON: of an environment with moebind installed from a wheel
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CODE = "import time, numpy; t = time.perf_counter(); import moebind; print(1e3 * (time.perf_counter() - t))"
ROUNDS = 15


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How long import moebind takes beyond import numpy.")
    parser.add_argument("python", nargs="?", default=sys.executable, help="of an environment with moebind")
    command = [parser.parse_args().python, "-I", "-c", CODE]
    times = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(ROUNDS)]
    print(f"import moebind: {statistics.median(times):.1f} ms beyond numpy ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
